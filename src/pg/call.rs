//! Calling a function of somebody else's, inside a `SetterScope`.
//!
//! Client backends and database workers, main thread. Through SPI, so that the executor checks EXECUTE for the current
//! role. The statement holds names and no value.

use std::ffi::CString;

use hyperion_vault_core::secret::FunctionName;
use pgrx::pg_sys::{self, Datum};

use super::datum;
use crate::error::{Result, VaultError};

/// `function(name, version)`; what it returns is thrown away, what it raises is passed on.
pub fn function(function: &FunctionName, name: &str, version: i32) -> Result<()> {
    let sql = CString::new(format!("SELECT {}($1, $2)", function.quoted()))
        .map_err(|_| VaultError::internal("a function name with a zero byte"))?;
    let mut types = [pg_sys::TEXTOID, pg_sys::INT4OID];
    // SAFETY: nesting is allowed; one value and type per parameter; an error unwinds, and the abort closes the connection.
    unsafe {
        if pg_sys::SPI_connect() != pg_sys::SPI_OK_CONNECT as i32 {
            return Err(VaultError::internal("SPI_connect failed"));
        }
        let mut values = [datum::varlena(name.as_bytes()), Datum::from(version)];
        let code = pg_sys::SPI_execute_with_args(
            sql.as_ptr(),
            2,
            types.as_mut_ptr(),
            values.as_mut_ptr(),
            std::ptr::null(),
            false,
            0,
        );
        pg_sys::SPI_finish();
        if code < 0 {
            return Err(VaultError::internal(format!("SPI_execute_with_args failed with code {code}")));
        }
    }
    Ok(())
}
