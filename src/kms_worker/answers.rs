//! What the key-service worker answers: the service's result as a message for the client's slot.
//!
//! On its main thread. The trap it avoids: an answer whose key is not in the cache although its client has it; so a key that was
//! unwrapped is cached here, before the answer is on its way.

use hyperion_vault_core::ipc::{ErrorKind, Response};
use hyperion_vault_kms::{KmsError, Outcome, Service};

use crate::area::Area;
use crate::config;
use crate::pg::{latch, monotonic_ms};

pub struct Answers<'a> {
    pub area: Area,
    pub service: &'a Service,
}

impl Answers<'_> {
    /// `digest` is where an unwrapped key goes in the cache.
    pub fn to(&self, result: Result<Outcome, KmsError>, digest: Option<&[u8; 32]>) -> Response {
        let outcome = match result {
            Ok(outcome) => outcome,
            Err(error) => return failed(error),
        };
        match outcome {
            Outcome::Generated(generated) => Response::Dek {
                dek: *generated.dek,
                wrapped: generated.wrapped.0,
                key_id: generated.by.key_id,
                key_material_id: generated.by.key_material_id.unwrap_or_default(),
            },
            Outcome::Unwrapped(dek) => {
                if let Some(digest) = digest {
                    let done = self.area.cache().insert(
                        digest,
                        &dek,
                        monotonic_ms(),
                        config::dek_cache_ttl_ms(),
                        config::dek_cache_stale_ms(),
                    );
                    self.area.counters.inserted(latch::my_proc().max(0) as usize, done);
                }
                Response::Unwrapped { dek: *dek }
            }
            Outcome::Described(described) => Response::Described {
                provider: self.service.status().provider.unwrap_or_default().to_owned(),
                key_id: described.key_id,
                key_material_id: described.key_material_id.unwrap_or_default(),
            },
        }
    }
}

fn failed(error: KmsError) -> Response {
    Response::Error {
        kind: error.kind,
        message: error.message,
        detail: error.detail.unwrap_or_default(),
        hint: error.hint.unwrap_or_default(),
    }
}

/// An error of the worker's own.
pub fn internal(message: &str) -> Response {
    Response::Error {
        kind: ErrorKind::Internal,
        message: message.to_owned(),
        detail: String::new(),
        hint: String::new(),
    }
}
