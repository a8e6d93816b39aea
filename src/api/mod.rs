//! The SQL API: thin functions by noun. Each parses its arguments, passes the gate, calls, maps the error.
//!
//! Client backends, main thread. Declarations: sql/30_functions.sql, sql/32_access.sql.

mod arguments;
mod batch;
mod create;
mod gate;
mod install;
mod keys;
mod lifecycle;
mod listing;
mod read;
mod rename;
mod rights;
mod roles;
mod status;
mod tokens;
mod travel;
mod update;
mod verify;
mod view;
mod writing;

use crate::pg::fcinfo::sql_function;

sql_function!(vault_inside, pg_finfo_vault_inside, install::inside);
sql_function!(vault_identity_changed, pg_finfo_vault_identity_changed, crate::pg::triggers::announce_change);
sql_function!(vault_check_install, pg_finfo_vault_check_install, install::check);
sql_function!(vault_create_secret, pg_finfo_vault_create_secret, create::create_secret);
sql_function!(vault_create_secret_bytes, pg_finfo_vault_create_secret_bytes, create::create_secret_bytes);
sql_function!(vault_put_secret, pg_finfo_vault_put_secret, create::put_secret);
sql_function!(vault_put_secret_bytes, pg_finfo_vault_put_secret_bytes, create::put_secret_bytes);
sql_function!(vault_update_secret, pg_finfo_vault_update_secret, update::update_secret);
sql_function!(vault_rotate_secret, pg_finfo_vault_rotate_secret, update::rotate_secret);
sql_function!(vault_roll_back_secret, pg_finfo_vault_roll_back_secret, update::roll_back_secret);
sql_function!(vault_rename_secret, pg_finfo_vault_rename_secret, rename::rename_secret);
sql_function!(vault_delete_secret, pg_finfo_vault_delete_secret, lifecycle::delete_secret);
sql_function!(vault_restore_secret, pg_finfo_vault_restore_secret, lifecycle::restore_secret);
sql_function!(vault_read_secret, pg_finfo_vault_read_secret, read::read_secret);
sql_function!(vault_read_secret_bytes, pg_finfo_vault_read_secret_bytes, read::read_secret_bytes);
sql_function!(vault_get_secret, pg_finfo_vault_get_secret, read::get_secret);
sql_function!(vault_read_secrets, pg_finfo_vault_read_secrets, batch::read_secrets);
sql_function!(vault_verify, pg_finfo_vault_verify, verify::verify);
sql_function!(vault_verify_bytes, pg_finfo_vault_verify_bytes, verify::verify_bytes);
sql_function!(vault_list_secrets, pg_finfo_vault_list_secrets, listing::list_secrets);
sql_function!(vault_list_versions, pg_finfo_vault_list_versions, listing::list_versions);
sql_function!(vault_status, pg_finfo_vault_status, status::status);
// Who may do what.
sql_function!(vault_create_role, pg_finfo_vault_create_role, roles::create_role);
sql_function!(vault_set_role_permissions, pg_finfo_vault_set_role_permissions, roles::set_role_permissions);
sql_function!(vault_drop_role, pg_finfo_vault_drop_role, roles::drop_role);
sql_function!(vault_list_roles, pg_finfo_vault_list_roles, roles::list_roles);
sql_function!(vault_can, pg_finfo_vault_can, roles::can);
sql_function!(vault_bind_role, pg_finfo_vault_bind_role, roles::bind_role);
sql_function!(vault_unbind_role, pg_finfo_vault_unbind_role, roles::unbind_role);
sql_function!(vault_rebind_roles, pg_finfo_vault_rebind_roles, roles::rebind_roles);
sql_function!(vault_create_token, pg_finfo_vault_create_token, tokens::create_token);
sql_function!(vault_revoke_token, pg_finfo_vault_revoke_token, tokens::revoke_token);
sql_function!(vault_list_tokens, pg_finfo_vault_list_tokens, tokens::list_tokens);
sql_function!(vault_authenticate, pg_finfo_vault_authenticate, tokens::authenticate);
// The vault carried elsewhere.
sql_function!(vault_export_sealed, pg_finfo_vault_export_sealed, travel::export_sealed);
sql_function!(vault_import_sealed, pg_finfo_vault_import_sealed, travel::import_sealed);
sql_function!(vault_visible, pg_finfo_vault_visible, view::visible);
sql_function!(vault_open, pg_finfo_vault_open, view::open);
