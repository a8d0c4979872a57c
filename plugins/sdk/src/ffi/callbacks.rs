//! What the engine calls: the functions of the contract, over a [`Plugin`] in safe Rust.
//!
//! No panic leaves them. What the verdicts of a call point to hangs on the `owner` of the first one until `release`; a call
//! in which every event is kept allocates nothing here.
#![allow(unsafe_code, reason = "implements a C interface")]

use std::{
    any::{Any, TypeId},
    collections::BTreeMap,
    ffi::c_void,
    panic::{AssertUnwindSafe, catch_unwind},
    slice,
    sync::{Mutex, PoisonError},
};

use super::lent::{Batch, Host, fail, text};
use crate::{
    Plugin,
    abi::{self, Bytes, Failure, Status},
    config,
    verdict::Verdicts,
};

/// What a library exports for `P`: [`crate::export_plugin`] does it.
pub const fn plugin<P: Plugin>() -> abi::Plugin {
    abi::Plugin {
        header: abi::Header::current(),
        describe: describe::<P>,
        create: create::<P>,
        process: process::<P>,
        release,
        destroy: destroy::<P>,
        health: Some(health::<P>),
    }
}

/// What the engine's `instance` points to.
struct Instance<P> {
    plugin: P,
    host: Host,
}

unsafe extern "C" fn describe<P: Plugin>() -> Bytes {
    // The bytes have to stay the same for ever. A static cannot be generic, so there is one for all plugins of the library.
    static TEXTS: Mutex<BTreeMap<TypeId, &'static str>> = Mutex::new(BTreeMap::new());

    let mut texts = TEXTS.lock().unwrap_or_else(PoisonError::into_inner);
    let text = texts.entry(TypeId::of::<P>()).or_insert_with(|| {
        // There is no other way to report a failure: the engine shows what is not a JSON object.
        let text = catch(|| serde_json::to_string(&P::describe().0).unwrap_or_else(|error| error.to_string()))
            .unwrap_or_else(|message| format!("describe() panicked: {message}"));
        text.leak()
    });
    Bytes::of(text.as_bytes())
}

unsafe extern "C" fn create<P: Plugin>(host: *const abi::Host, config: Bytes, failure: *mut Failure) -> *mut c_void {
    // SAFETY: the engine's arguments, read while its call lasts.
    let (host, config) = unsafe { (Host::new(host), text(config)) };
    let created = catch(|| {
        let config = config::read(config)?;
        let plugin = P::new(config, host).map_err(|error| chain(error.as_ref()))?;
        Ok(Box::into_raw(Box::new(Instance { plugin, host })).cast())
    });
    match created.unwrap_or_else(|message| Err(format!("new() panicked: {message}"))) {
        Ok(instance) => instance,
        Err(words) => {
            // SAFETY: the engine's argument.
            unsafe { fail(failure, &words) };
            std::ptr::null_mut()
        }
    }
}

unsafe extern "C" fn process<P: Plugin>(
    instance: *mut c_void,
    batch: *const abi::Batch,
    verdicts: *mut abi::Verdict,
    failure: *mut Failure,
) -> Status {
    // SAFETY: `create` made the instance, and the engine destroys it after this call. It is only ever shared.
    let plugin = unsafe { &(*instance.cast::<Instance<P>>()).plugin };
    // SAFETY: the engine's argument, used while its call lasts.
    let batch = unsafe { Batch::new(batch) };
    if batch.is_empty() {
        return Status::OK;
    }
    // SAFETY: the engine provides as many verdicts as there are events, and nobody else has them during the call.
    let slots = unsafe { slice::from_raw_parts_mut(verdicts, batch.len()) };

    let outcome = catch(|| {
        let mut verdicts = Verdicts::new(&mut *slots);
        plugin.process(&batch, &mut verdicts);
        verdicts.finish()
    });
    let (status, words) = match outcome {
        Ok(Ok(owned)) => {
            if let Some(first) = slots.first_mut()
                && !owned.is_empty()
            {
                first.owner = Box::into_raw(Box::new(owned)).cast();
            }
            return Status::OK;
        }
        Ok(Err(words)) => (Status::FAILED, words),
        Err(message) => {
            // They may point to what went with the panic.
            slots.fill(abi::Verdict::NONE);
            (Status::PANICKED, message)
        }
    };
    // SAFETY: the engine's argument.
    unsafe { fail(failure, &words) };
    status
}

unsafe extern "C" fn release(_instance: *mut c_void, verdicts: *mut abi::Verdict, count: u64) {
    if count == 0 {
        return;
    }
    // SAFETY: the verdicts of a call of `process`, which has set the owner of the first one and is not set by anybody else.
    let owner = unsafe { &mut (*verdicts).owner };
    if !owner.is_null() {
        // SAFETY: `process` made it of such a box, and it is taken once.
        drop(unsafe { Box::from_raw(owner.cast::<Vec<String>>()) });
        *owner = std::ptr::null_mut();
    }
}

unsafe extern "C" fn destroy<P: Plugin>(instance: *mut c_void) {
    // SAFETY: `create` made it of such a box, and the engine destroys it once, when nothing uses it any more.
    let instance = unsafe { Box::from_raw(instance.cast::<Instance<P>>()) };
    let Instance { plugin, host } = *instance;
    if let Err(message) = catch(move || drop(plugin)) {
        host.error(format_args!("the plugin's drop panicked: {message}"));
    }
}

unsafe extern "C" fn health<P: Plugin>(instance: *mut c_void, failure: *mut Failure) -> Status {
    // SAFETY: as in `process`.
    let plugin = unsafe { &(*instance.cast::<Instance<P>>()).plugin };
    let (status, words) = match catch(|| plugin.health()) {
        Ok(Ok(())) => return Status::OK,
        Ok(Err(words)) => (Status::FAILED, words),
        Err(message) => (Status::PANICKED, message),
    };
    // SAFETY: the engine's argument.
    unsafe { fail(failure, &words) };
    status
}

/// Runs code of the plugin. Its message if it panics.
///
/// `AssertUnwindSafe`: the engine counts the panic as a fault and quarantines a plugin that has many; until then an instance
/// goes on, as a Rust server goes on after a handler's panic. A lock that was held is poisoned, as always.
fn catch<T>(code: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(code)).map_err(message)
}

fn message(payload: Box<dyn Any + Send>) -> String {
    match payload.downcast::<String>() {
        Ok(message) => *message,
        Err(payload) => match payload.downcast::<&'static str>() {
            Ok(message) => (*message).to_owned(),
            Err(payload) => {
                // Its drop could panic again, here where nobody would catch it.
                std::mem::forget(payload);
                "a panic without a message".to_owned()
            }
        },
    }
}

/// An error with its causes, in one line.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut words = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        words.push_str(": ");
        words.push_str(&error.to_string());
        cause = error.source();
    }
    words
}
