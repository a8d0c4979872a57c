//! The C interface of libchdb, and the only file that calls it.
//!
//! Everything here is a thin, safe shape around one C object: [`Library`] (the loaded functions), [`Connection`],
//! [`InsertStream`] and [`ResultBuffer`]. Errors are the library's own text; `engine` gives them a code.
//!
//! What the C interface promises and what the SAFETY notes below lean on:
//! - every function may be called from any thread, and a connection runs one statement at a time. The wrappers take
//!   `&mut` for every call on a connection, so two calls on one connection cannot overlap;
//! - texts and data that are passed in are copied before the call returns;
//! - a result or a stream belongs to the caller until it is destroyed, and it is destroyed exactly once, by `Drop`.

#![expect(unsafe_code, reason = "the boundary to a C library")]

use std::{
    ffi::{CStr, CString, c_char, c_int, c_void},
    path::Path,
    ptr::NonNull,
};

type ConnectionHandle = *mut c_void;
type StreamHandle = *mut c_void;

/// Opaque `chdb_result`.
#[repr(C)]
struct RawResult {
    _private: [u8; 0],
}

/// `chdb_query_analysis_v1`.
#[repr(C)]
struct RawAnalysis {
    struct_size: u32,
    statement_count: u32,
    flags: u32,
    query_class: u32,
}

type ParameterisedCall<R> = unsafe extern "C" fn(
    ConnectionHandle,
    *const c_char,
    usize,
    *const c_char,
    usize,
    *const *const c_char,
    *const usize,
    *const *const c_char,
    *const usize,
    usize,
) -> R;

/// The functions of a loaded libchdb. Never unloaded: the engine's threads run its code until the process ends.
pub(super) struct Library {
    set_signal_handlers_enabled: unsafe extern "C" fn(c_int),
    connect: unsafe extern "C" fn(c_int, *mut *mut c_char) -> *mut ConnectionHandle,
    close: unsafe extern "C" fn(*mut ConnectionHandle),
    query: ParameterisedCall<*mut RawResult>,
    classify:
        unsafe extern "C" fn(ConnectionHandle, *const c_char, usize, *const c_char, usize, *mut RawAnalysis) -> c_int,
    insert_open: ParameterisedCall<StreamHandle>,
    insert_append: unsafe extern "C" fn(StreamHandle, *const c_void, usize) -> c_int,
    insert_done: unsafe extern "C" fn(StreamHandle) -> *mut RawResult,
    insert_error: unsafe extern "C" fn(StreamHandle) -> *const c_char,
    insert_destroy: unsafe extern "C" fn(StreamHandle),
    result_destroy: unsafe extern "C" fn(*mut RawResult),
    result_buffer: unsafe extern "C" fn(*mut RawResult) -> *const u8,
    result_length: unsafe extern "C" fn(*mut RawResult) -> usize,
    result_error: unsafe extern "C" fn(*mut RawResult) -> *const c_char,
    result_elapsed: unsafe extern "C" fn(*mut RawResult) -> f64,
    result_rows: unsafe extern "C" fn(*mut RawResult) -> u64,
    result_rows_read: unsafe extern "C" fn(*mut RawResult) -> u64,
    result_bytes_read: unsafe extern "C" fn(*mut RawResult) -> u64,
    result_rows_written: unsafe extern "C" fn(*mut RawResult) -> u64,
    result_bytes_written: unsafe extern "C" fn(*mut RawResult) -> u64,
}

impl Library {
    /// Loads the library at `path`, for the rest of the process's life, and tells it to leave signal handlers alone.
    ///
    /// # Errors
    /// The loader's error: the file is missing, is no library, or lacks a function (another version).
    pub(super) fn load(path: &Path) -> Result<&'static Self, libloading::Error> {
        // SAFETY: loading runs the library's initialisers; this is the pinned libchdb, whose initialisers set up its
        // allocator and registries and expect nothing of the caller.
        let library = Box::leak(Box::new(unsafe { libloading::Library::new(path) }?));
        macro_rules! symbol {
            ($name:literal) => {
                // SAFETY: the field's type is the function's declaration in the chdb.h of the pinned version.
                *unsafe { library.get($name) }?
            };
        }
        let functions = Box::leak(Box::new(Self {
            set_signal_handlers_enabled: symbol!("chdb_set_signal_handlers_enabled"),
            connect: symbol!("chdb_connect"),
            close: symbol!("chdb_close_conn"),
            query: symbol!("chdb_query_with_params_n"),
            classify: symbol!("chdb_classify_query_n"),
            insert_open: symbol!("chdb_stream_insert_with_params_n"),
            insert_append: symbol!("chdb_stream_append"),
            insert_done: symbol!("chdb_stream_done"),
            insert_error: symbol!("chdb_stream_insert_error"),
            insert_destroy: symbol!("chdb_destroy_insert_stream"),
            result_destroy: symbol!("chdb_destroy_query_result"),
            result_buffer: symbol!("chdb_result_buffer"),
            result_length: symbol!("chdb_result_length"),
            result_error: symbol!("chdb_result_error"),
            result_elapsed: symbol!("chdb_result_elapsed"),
            result_rows: symbol!("chdb_result_rows_read"),
            result_rows_read: symbol!("chdb_result_storage_rows_read"),
            result_bytes_read: symbol!("chdb_result_storage_bytes_read"),
            result_rows_written: symbol!("chdb_result_rows_written"),
            result_bytes_written: symbol!("chdb_result_bytes_written"),
        }));
        // SAFETY: takes an integer and must precede the first connection, which only `connect` below can make.
        unsafe { (functions.set_signal_handlers_enabled)(0) };
        Ok(functions)
    }

    /// Opens a connection; the first one in a process starts the engine. None: the library gives no reason.
    pub(super) fn connect(&'static self, arguments: &[CString]) -> Option<Connection> {
        let mut pointers: Vec<*mut c_char> = arguments.iter().map(|argument| argument.as_ptr().cast_mut()).collect();
        let count = c_int::try_from(pointers.len()).ok()?;
        // SAFETY: `pointers` holds `count` NUL-terminated strings that outlive the call, which copies them.
        let handle = NonNull::new(unsafe { (self.connect)(count, pointers.as_mut_ptr()) })?;
        // SAFETY: a non-null answer points to the connection's handle, which stays readable until it is closed.
        if unsafe { *handle.as_ptr() }.is_null() {
            return None;
        }
        Some(Connection { library: self, handle })
    }
}

/// One connection: settings, current database and temporary tables of its own.
pub(super) struct Connection {
    library: &'static Library,
    handle: NonNull<ConnectionHandle>,
}

// SAFETY: the library binds nothing to the thread that opened a connection; see the module's notes.
unsafe impl Send for Connection {}

impl Connection {
    fn raw(&self) -> ConnectionHandle {
        // SAFETY: `handle` was checked when the connection was opened and is valid until `Drop`.
        unsafe { *self.handle.as_ptr() }
    }

    /// Runs one statement. `format` is the output format unless the statement names one.
    pub(super) fn query(
        &mut self,
        sql: &[u8],
        format: &str,
        parameters: &[(String, String)],
    ) -> Result<ResultBuffer, String> {
        let result = self.call(self.library.query, sql, format, parameters);
        // SAFETY: the call gives the result to its caller.
        unsafe { ResultBuffer::adopt(self.library, result) }
    }

    /// Starts an insert whose data follows through [`InsertStream::append`]. `sql` has neither FORMAT nor data.
    pub(super) fn insert(
        &mut self,
        sql: &[u8],
        format: &str,
        parameters: &[(String, String)],
    ) -> Result<InsertStream<'_>, String> {
        let handle = self.call(self.library.insert_open, sql, format, parameters);
        if handle.is_null() {
            return Err("libchdb gave no insert stream".to_owned());
        }
        let stream = InsertStream { connection: self, handle };
        // A statement that cannot start still yields a handle; its error is asked for.
        match stream.error() {
            Some(error) => Err(error),
            None => Ok(stream),
        }
    }

    /// Whether the engine's own parser calls `sql` a statement that leaves no trace. None: it does not parse. A statement
    /// that the parser knows and does not classify counts as one that may leave a trace.
    pub(super) fn is_read_only(&mut self, sql: &[u8]) -> Option<bool> {
        const READ_ONLY: u32 = 0;
        const UNKNOWN: u32 = 4;
        let mut analysis = RawAnalysis { struct_size: 0, statement_count: 0, flags: 0, query_class: UNKNOWN };
        analysis.struct_size = u32::try_from(size_of::<RawAnalysis>()).ok()?;
        // SAFETY: text and length belong together, a null database is allowed, and `analysis` says its own size.
        let state = unsafe {
            (self.library.classify)(self.raw(), sql.as_ptr().cast(), sql.len(), std::ptr::null(), 0, &raw mut analysis)
        };
        let unparsed = analysis.query_class == UNKNOWN && analysis.statement_count == 0;
        if state == 0 && unparsed { None } else { Some(state == 0 && analysis.query_class == READ_ONLY) }
    }

    fn call<R>(
        &mut self,
        function: ParameterisedCall<R>,
        sql: &[u8],
        format: &str,
        parameters: &[(String, String)],
    ) -> R {
        let names: Vec<*const c_char> = parameters.iter().map(|(name, _)| name.as_ptr().cast()).collect();
        let name_lengths: Vec<usize> = parameters.iter().map(|(name, _)| name.len()).collect();
        let values: Vec<*const c_char> = parameters.iter().map(|(_, value)| value.as_ptr().cast()).collect();
        let value_lengths: Vec<usize> = parameters.iter().map(|(_, value)| value.len()).collect();
        // SAFETY: every pointer comes with its length, all outlive the call, and `&mut self` keeps the connection
        // to this call alone.
        unsafe {
            function(
                self.raw(),
                sql.as_ptr().cast(),
                sql.len(),
                format.as_ptr().cast(),
                format.len(),
                names.as_ptr(),
                name_lengths.as_ptr(),
                values.as_ptr(),
                value_lengths.as_ptr(),
                parameters.len(),
            )
        }
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        // SAFETY: streams borrow the connection, so none is open; the handle is used no more.
        unsafe { (self.library.close)(self.handle.as_ptr()) }
    }
}

/// An insert under way. Dropping it without [`InsertStream::finish`] cancels it.
pub(super) struct InsertStream<'c> {
    connection: &'c mut Connection,
    handle: StreamHandle,
}

impl InsertStream<'_> {
    /// Hands over the next bytes of the data (copied; they may end anywhere). Blocks while the engine is behind.
    pub(super) fn append(&mut self, data: &[u8]) -> Result<(), String> {
        // SAFETY: the stream is open, pointer and length belong together, and the data is copied.
        let state = unsafe { (self.connection.library.insert_append)(self.handle, data.as_ptr().cast(), data.len()) };
        if state == 0 { Ok(()) } else { Err(self.error().unwrap_or_else(|| "libchdb refused insert data".to_owned())) }
    }

    /// Ends the data and commits the insert.
    pub(super) fn finish(self) -> Result<ResultBuffer, String> {
        // SAFETY: the stream is open; the result belongs to the caller, the stream to `Drop`.
        unsafe {
            let result = (self.connection.library.insert_done)(self.handle);
            ResultBuffer::adopt(self.connection.library, result)
        }
    }

    fn error(&self) -> Option<String> {
        // SAFETY: the stream is not destroyed yet; the text is copied at once.
        unsafe { text((self.connection.library.insert_error)(self.handle)) }
    }
}

impl Drop for InsertStream<'_> {
    fn drop(&mut self) {
        // SAFETY: destroyed once, here; the library cancels a stream that was not finished.
        unsafe { (self.connection.library.insert_destroy)(self.handle) }
    }
}

/// The answer to a statement: its bytes stay in the library's memory until this is dropped.
pub(super) struct ResultBuffer {
    library: &'static Library,
    handle: NonNull<RawResult>,
}

// SAFETY: a finished result is plain memory that nothing else refers to.
unsafe impl Send for ResultBuffer {}

impl ResultBuffer {
    /// Takes over `result`, or destroys it and gives its error.
    ///
    /// # Safety
    /// `result` is null or a live result that nobody else destroys.
    unsafe fn adopt(library: &'static Library, result: *mut RawResult) -> Result<Self, String> {
        let handle = NonNull::new(result).ok_or_else(|| "libchdb gave no result".to_owned())?;
        let adopted = Self { library, handle };
        // SAFETY: the handle is live; the text is copied at once.
        match unsafe { text((library.result_error)(handle.as_ptr())) } {
            Some(error) => Err(error),
            None => Ok(adopted),
        }
    }

    fn get<T>(&self, function: unsafe extern "C" fn(*mut RawResult) -> T) -> T {
        // SAFETY: the handle is live until `Drop`, and every getter only reads it.
        unsafe { function(self.handle.as_ptr()) }
    }

    /// Seconds that the statement took.
    pub(super) fn elapsed(&self) -> f64 {
        self.get(self.library.result_elapsed)
    }

    /// Rows in the answer.
    pub(super) fn rows(&self) -> u64 {
        self.get(self.library.result_rows)
    }

    /// Rows and bytes read from tables.
    pub(super) fn read(&self) -> (u64, u64) {
        (self.get(self.library.result_rows_read), self.get(self.library.result_bytes_read))
    }

    /// Rows and bytes written, those of materialized views included.
    pub(super) fn written(&self) -> (u64, u64) {
        (self.get(self.library.result_rows_written), self.get(self.library.result_bytes_written))
    }
}

impl AsRef<[u8]> for ResultBuffer {
    fn as_ref(&self) -> &[u8] {
        let length = self.get(self.library.result_length);
        let start = self.get(self.library.result_buffer);
        if length == 0 || start.is_null() {
            return &[];
        }
        // SAFETY: the library gives `length` readable bytes that do not change and live as long as the handle.
        unsafe { std::slice::from_raw_parts(start, length) }
    }
}

impl Drop for ResultBuffer {
    fn drop(&mut self) {
        // SAFETY: destroyed once, here.
        unsafe { (self.library.result_destroy)(self.handle.as_ptr()) }
    }
}

/// Copies a C string; None for null.
///
/// # Safety
/// `pointer` is null or a NUL-terminated string that stays valid during the call.
unsafe fn text(pointer: *const c_char) -> Option<String> {
    if pointer.is_null() {
        return None;
    }
    // SAFETY: as the caller promises.
    Some(unsafe { CStr::from_ptr(pointer) }.to_string_lossy().into_owned())
}
