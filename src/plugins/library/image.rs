//! A shared library as a file: whether the loader can take it, and what it exports, before any of its code runs.
//!
//! Only what is needed is read: the ELF header, the program headers, the section table, the dynamic symbols, and the
//! bytes of the exported header. Nothing here is unsafe, and nothing trusts an offset that the file names.

use std::{fs::File, io, path::Path};

use ingestion_plugin_abi::{Header, SYMBOL};
use object::{
    Endianness, ReadCache, ReadRef, elf,
    read::elf::{FileHeader, ProgramHeader, SectionHeader, Sym},
};

use super::LibraryError;

type ElfHeader = elf::FileHeader64<Endianness>;

/// The machine that this engine was compiled for.
const MACHINE: u16 = if cfg!(target_arch = "x86_64") {
    elf::EM_X86_64
} else if cfg!(target_arch = "aarch64") {
    elf::EM_AARCH64
} else if cfg!(target_arch = "riscv64") {
    elf::EM_RISCV
} else {
    elf::EM_NONE
};

/// What a file exports.
#[derive(Clone, Copy, Debug)]
pub(super) struct Image {
    /// The plugin's header, as it is in the file. No loader changes it: it holds no addresses.
    pub header: Header,
    /// Size of the exported symbol, in bytes.
    pub symbol_size: u64,
}

/// Looks at the file at `path`.
///
/// # Errors
/// [`LibraryError`]: the loader would not take it, or it exports no plugin.
pub(super) fn look(path: &Path) -> Result<Image, LibraryError> {
    let read = |source: io::Error| LibraryError::Read { path: path.to_owned(), source };
    let file = File::open(path).map_err(read)?;
    let length = file.metadata().map_err(read)?.len();
    let cache = ReadCache::new(file);
    let image = Look { data: &cache, length };
    let header = image.elf_header()?;
    image.whole(header)?;
    image.exported(header)
}

struct Look<'a> {
    data: &'a ReadCache<File>,
    length: u64,
}

impl<'a> Look<'a> {
    fn elf_header(&self) -> Result<&'a ElfHeader, LibraryError> {
        let magic = self.data.read_bytes_at(0, 4).unwrap_or_default();
        if magic != elf::ELFMAG {
            return Err(LibraryError::NotElf);
        }
        // Class and byte order, the two bytes behind the magic, say how to read the rest.
        let native =
            [elf::ELFCLASS64, if cfg!(target_endian = "little") { elf::ELFDATA2LSB } else { elf::ELFDATA2MSB }];
        if self.data.read_bytes_at(4, 2).is_ok_and(|found| found != native) {
            return Err(LibraryError::OtherMachine { problem: "its word size or byte order is another".to_owned() });
        }
        let Ok(header) = self.data.read_at::<ElfHeader>(0) else {
            return Err(self.cut_off(size_of::<ElfHeader>() as u64));
        };
        let machine = header.e_machine(Endianness::default());
        if machine != MACHINE {
            let problem =
                format!("it is for {}, and this engine runs on {}", machine_name(machine), machine_name(MACHINE));
            return Err(LibraryError::OtherMachine { problem });
        }
        if header.e_type(Endianness::default()) != elf::ET_DYN {
            return Err(LibraryError::NotShared);
        }
        Ok(header)
    }

    /// A file that is still being copied has its headers, which are at the front, and not what they point to.
    fn whole(&self, header: &ElfHeader) -> Result<(), LibraryError> {
        let endian = Endianness::default();
        let table = |offset: u64, count: u16, size: u16| offset.saturating_add(u64::from(count) * u64::from(size));
        let mut end = table(header.e_shoff(endian), header.e_shnum(endian), header.e_shentsize(endian)).max(table(
            header.e_phoff(endian),
            header.e_phnum(endian),
            header.e_phentsize(endian),
        ));
        if end > self.length {
            return Err(self.cut_off(end));
        }
        for segment in header.program_headers(endian, self.data).map_err(damaged)? {
            end = end.max(segment.p_offset(endian).saturating_add(segment.p_filesz(endian)));
        }
        for section in header.section_headers(endian, self.data).map_err(damaged)? {
            if section.sh_type(endian) != elf::SHT_NOBITS {
                end = end.max(section.sh_offset(endian).saturating_add(section.sh_size(endian)));
            }
        }
        if end > self.length { Err(self.cut_off(end)) } else { Ok(()) }
    }

    fn exported(&self, header: &ElfHeader) -> Result<Image, LibraryError> {
        let endian = Endianness::default();
        let sections = header.sections(endian, self.data).map_err(damaged)?;
        let symbols = sections.symbols(endian, self.data, elf::SHT_DYNSYM).map_err(damaged)?;
        let found = symbols.iter().find(|symbol| {
            symbol.st_shndx(endian) != elf::SHN_UNDEF
                && symbols.symbol_name(endian, symbol).is_ok_and(|name| name == SYMBOL.as_bytes())
        });
        let Some(symbol) = found else { return Err(LibraryError::NoSymbol) };
        if symbol.st_type() != elf::STT_OBJECT {
            return Err(LibraryError::NotData);
        }
        let symbol_size = symbol.st_size(endian);
        if symbol_size < size_of::<Header>() as u64 {
            return Err(LibraryError::SymbolTooSmall { bytes: symbol_size });
        }
        let address = symbol.st_value(endian);
        for segment in header.program_headers(endian, self.data).map_err(damaged)? {
            if segment.p_type(endian) != elf::PT_LOAD {
                continue;
            }
            let bytes = segment.data_range(endian, self.data, address, size_of::<Header>() as u64);
            if let Ok(Some(bytes)) = bytes {
                return Ok(Image { header: header_from(bytes), symbol_size });
            }
        }
        // In no segment's bytes: memory that begins as zeros (.bss), which is no header.
        Ok(Image { header: header_from(&[]), symbol_size })
    }

    fn cut_off(&self, expected: u64) -> LibraryError {
        LibraryError::CutOff { bytes: self.length, expected }
    }
}

fn damaged(error: object::read::Error) -> LibraryError {
    LibraryError::Damaged { problem: error.to_string() }
}

fn header_from(bytes: &[u8]) -> Header {
    let eight = |at: usize| bytes.get(at..at + 8).and_then(|part| part.try_into().ok()).map_or(0, u64::from_ne_bytes);
    let four = |at: usize| bytes.get(at..at + 4).and_then(|part| part.try_into().ok()).map_or(0, u32::from_ne_bytes);
    Header { magic: eight(0), abi_major: four(8), abi_minor: four(12), struct_size: eight(16) }
}

fn machine_name(machine: u16) -> String {
    match machine {
        elf::EM_X86_64 => "x86-64".to_owned(),
        elf::EM_AARCH64 => "ARM 64-bit (aarch64)".to_owned(),
        elf::EM_RISCV => "RISC-V".to_owned(),
        elf::EM_386 => "x86 32-bit".to_owned(),
        elf::EM_ARM => "ARM 32-bit".to_owned(),
        other => format!("machine {other} of the ELF list"),
    }
}
