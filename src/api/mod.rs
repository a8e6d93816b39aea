//! The SQL API: thin functions by noun. Each parses its arguments, passes the gate, calls, maps the error.
//!
//! Client backends, main thread. Declarations: sql/30_functions.sql, sql/32_access.sql.

mod arguments;
mod batch;
mod create;
mod earlier;
pub mod gate;
mod hook;
mod install;
pub mod keys;
pub mod lifecycle;
mod listing;
mod read;
mod rename;
mod rights;
mod roles;
mod status;
mod target;
mod tokens;
mod travel;
pub mod update;
mod verify;
mod view;
mod writing;

use crate::pg::fcinfo::{audited, sql_function};

sql_function!(vault_identity_changed, pg_finfo_vault_identity_changed, crate::pg::triggers::announce_change);
sql_function!(vault_secret_changed, pg_finfo_vault_secret_changed, crate::store::secrets::row_changed);
sql_function!(vault_version_changed, pg_finfo_vault_version_changed, crate::store::versions::row_changed);
sql_function!(vault_check_install, pg_finfo_vault_check_install, install::check);
audited!(
    vault_create_secret,
    pg_finfo_vault_create_secret,
    "create_secret",
    "create",
    Write,
    create::create_secret
);
audited!(
    vault_create_secret_bytes,
    pg_finfo_vault_create_secret_bytes,
    "create_secret_bytes",
    "create",
    Write,
    create::create_secret_bytes
);
audited!(vault_put_secret, pg_finfo_vault_put_secret, "put_secret", "put", Write, create::put_secret);
audited!(
    vault_put_secret_bytes,
    pg_finfo_vault_put_secret_bytes,
    "put_secret_bytes",
    "put",
    Write,
    create::put_secret_bytes
);
audited!(
    vault_update_secret,
    pg_finfo_vault_update_secret,
    "update_secret",
    "update",
    Write,
    update::update_secret
);
audited!(
    vault_rotate_secret,
    pg_finfo_vault_rotate_secret,
    "rotate_secret",
    "rotate",
    Write,
    update::rotate_secret
);
audited!(
    vault_roll_back_secret,
    pg_finfo_vault_roll_back_secret,
    "roll_back_secret",
    "roll_back",
    Write,
    update::roll_back_secret
);
audited!(
    vault_rename_secret,
    pg_finfo_vault_rename_secret,
    "rename_secret",
    "rename",
    Write,
    rename::rename_secret
);
audited!(
    vault_delete_secret,
    pg_finfo_vault_delete_secret,
    "delete_secret",
    "delete",
    Write,
    lifecycle::delete_secret
);
audited!(
    vault_restore_secret,
    pg_finfo_vault_restore_secret,
    "restore_secret",
    "restore",
    Write,
    lifecycle::restore_secret
);
audited!(vault_read_secret, pg_finfo_vault_read_secret, "read_secret", "read", Read, read::read_secret);
audited!(
    vault_read_secret_bytes,
    pg_finfo_vault_read_secret_bytes,
    "read_secret_bytes",
    "read",
    Read,
    read::read_secret_bytes
);
audited!(vault_get_secret, pg_finfo_vault_get_secret, "get_secret", "read", Read, read::get_secret);
audited!(vault_read_secrets, pg_finfo_vault_read_secrets, "read_secrets", "read", Read, batch::read_secrets);
audited!(vault_verify, pg_finfo_vault_verify, "verify", "verify", Read, verify::verify);
audited!(
    vault_verify_bytes,
    pg_finfo_vault_verify_bytes,
    "verify_bytes",
    "verify",
    Read,
    verify::verify_bytes
);
audited!(
    vault_list_secrets,
    pg_finfo_vault_list_secrets,
    "list_secrets",
    "list",
    Read,
    listing::list_secrets
);
audited!(
    vault_list_versions,
    pg_finfo_vault_list_versions,
    "list_versions",
    "list",
    Read,
    listing::list_versions
);
audited!(vault_status, pg_finfo_vault_status, "status", "status", Watch, status::status);
// Who may do what.
audited!(
    vault_create_role,
    pg_finfo_vault_create_role,
    "create_role",
    "create_role",
    Write,
    roles::create_role
);
audited!(
    vault_set_role_permissions,
    pg_finfo_vault_set_role_permissions,
    "set_role_permissions",
    "set_permissions",
    Write,
    roles::set_role_permissions
);
audited!(vault_drop_role, pg_finfo_vault_drop_role, "drop_role", "drop_role", Write, roles::drop_role);
audited!(vault_list_roles, pg_finfo_vault_list_roles, "list_roles", "list_roles", Read, roles::list_roles);
audited!(vault_can, pg_finfo_vault_can, "can", "can", Read, roles::can);
audited!(vault_bind_role, pg_finfo_vault_bind_role, "bind_role", "bind_role", Write, roles::bind_role);
audited!(
    vault_unbind_role,
    pg_finfo_vault_unbind_role,
    "unbind_role",
    "unbind_role",
    Write,
    roles::unbind_role
);
audited!(
    vault_rebind_roles,
    pg_finfo_vault_rebind_roles,
    "rebind_roles",
    "rebind_roles",
    Write,
    roles::rebind_roles
);
audited!(
    vault_create_token,
    pg_finfo_vault_create_token,
    "create_token",
    "create_token",
    Write,
    tokens::create_token
);
audited!(
    vault_revoke_token,
    pg_finfo_vault_revoke_token,
    "revoke_token",
    "revoke_token",
    Write,
    tokens::revoke_token
);
audited!(
    vault_list_tokens,
    pg_finfo_vault_list_tokens,
    "list_tokens",
    "list_tokens",
    Read,
    tokens::list_tokens
);
audited!(
    vault_authenticate,
    pg_finfo_vault_authenticate,
    "authenticate",
    "authenticate",
    Read,
    tokens::authenticate
);
// The vault carried elsewhere.
audited!(
    vault_export_sealed,
    pg_finfo_vault_export_sealed,
    "export_sealed",
    "export",
    Read,
    travel::export_sealed
);
audited!(
    vault_import_sealed,
    pg_finfo_vault_import_sealed,
    "import_sealed",
    "import",
    Write,
    travel::import_sealed
);
// Of earlier releases, whose install scripts must still run.
sql_function!(vault_inside, pg_finfo_vault_inside, earlier::inside);
sql_function!(vault_visible, pg_finfo_vault_visible, earlier::visible);
sql_function!(vault_secrets_handler, pg_finfo_vault_secrets_handler, view::handler);
audited!(vault_open, pg_finfo_vault_open, "decrypted_secrets", "read", Read, view::open);
