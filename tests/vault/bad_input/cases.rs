//! The table of bad arguments: call | SQLSTATE | part of the message | part of the hint. Read in the test process.
//!
//! Text rather than tuples, so that a row stays a line. `#` starts a comment; `$V` stands for a value, quoted. A
//! hint `-` means that there is none, as with most errors of the server itself.

/// Refused to an administrator.
pub const WRITERS: &str = r##"
# NULL where there must be something.
create_secret('n', NULL) | 22023 | a manual secret needs a value | generator
create_secret('n') | 22023 | a manual secret needs a value | Pass value, or username and password
create_secret('n', $V, kind => NULL) | 22023 | kind must not be null | Pass a value for kind
put_secret('n', NULL) | 22023 | value must not be null | Pass a value for value
put_secret('s', NULL) | 22023 | value must not be null | Pass a value for value
update_secret('s') | 22023 | nothing to update | Pass a value, a property, or reset
update_secret('s', expected_version => 2) | 22023 | nothing to update | reset
# Kinds and types the server itself refuses.
create_secret('n', $V, 'magic') | 22P02 | invalid input value for enum | -
update_secret('s', kind => 'opaque') | 22P02 | invalid input value for enum | -
create_secret('n', $V, rotation_interval => 'soon') | 22007 | invalid input syntax for type interval | -
create_secret('n', $V, generator => '{"length": }') | 22P02 | invalid input syntax for type json | -
create_secret('n', $V, metadata => 'text') | 22P02 | invalid input syntax for type json | -
create_secret('n', $V, allowed_ips => '{10.0.0.1/8}') | 22P02 | invalid cidr value | -
create_secret('n', $V, allowed_ips => '{nowhere}') | 22P02 | invalid input syntax for type cidr | -
put_secret('n', $V, 2147483648) | 42883 | function vault.put_secret | explicit type casts
# Value, username, password.
create_secret('n', $V, username => 'u') | 22023 | either a value or a username and password | Pass value alone
create_secret('n', $V, password => $V) | 22023 | either a value or a username and password | Pass value alone
create_secret('n', $V, username => 'u', password => $V) | 22023 | either a value or | Pass value alone
create_secret('n', username => 'u') | 22023 | a username needs a password | generator
create_secret('n', password => $V) | 22023 | a password needs a username | Pass username too
update_secret('login', $V, username => 'u') | 22023 | either a value or a username and password | Pass value alone
update_secret('login', $V, password => $V) | 22023 | either a value or | Pass value alone
update_secret('login', $V) | 22023 | holds a username and password | username or password
put_secret('login', $V) | 22023 | holds a username and password | update_secret
update_secret('s', password => $V) | 22023 | holds a single value | Pass value instead
update_secret('s', username => $V) | 22023 | holds a single value | Pass value instead
create_secret('n', username => '', password => $V) | 22023 | username must not be empty | Pass the user name
create_secret('n', username => E'a\nb', password => $V) | 22023 | username contains a control | Remove it
create_secret('n', username => repeat('u', 1025), password => $V) | 22023 | username is too long | Shorten it
update_secret('login', username => '') | 22023 | username must not be empty | Pass the user name
# Intervals.
create_secret('n', $V, rotation_interval => '-1 day') | 22023 | rotation_interval must not be negative | '30 days'
create_secret('n', $V, rotation_interval => '0') | 22023 | rotation_interval is too short | at least 1 second
create_secret('n', $V, rotation_interval => '0.999999 s') | 22023 | rotation_interval is too short | at least 1 second
create_secret('n', $V, rotation_interval => '1 day -24 hours') | 22023 | rotation_interval is too short | 1 second
create_secret('n', $V, rotation_interval => '102 years') | 22023 | rotation_interval is too long | 36500 days
create_secret('n', $V, rotation_interval => '178000000 years') | 22023 | rotation_interval is too long | 36500 days
create_secret('n', $V, grace_period => '-1 microsecond') | 22023 | grace_period must not be negative | '30 days'
create_secret('n', $V, grace_period => '1 mon -31 days') | 22023 | grace_period must not be negative | '30 days'
create_secret('n', $V, grace_period => '36501 days') | 22023 | grace_period is too long | 36500 days
update_secret('s', rotation_interval => '-1 s') | 22023 | rotation_interval must not be negative | '30 days'
update_secret('s', grace_period => '-1 s') | 22023 | grace_period must not be negative | '30 days'
update_secret('s', grace_period => '200 years') | 22023 | grace_period is too long | 36500 days
create_secret('n', kind => 'automatic') | 22023 | an automatic secret needs a rotation_interval | kind => 'manual'
create_secret('n', $V, kind => 'automatic', grace_period => '1 s') | 22023 | needs a rotation_interval | '30 days'
update_secret('s', kind => 'automatic') | 22023 | needs a rotation_interval | '30 days'
# Generators.
create_secret('n', generator => '[]') | 22023 | generator must be a JSON object | "length": 32
create_secret('n', generator => '12') | 22023 | generator must be a JSON object | "length": 32
create_secret('n', generator => 'null') | 22023 | generator must be a JSON object | "length": 32
create_secret('n', generator => '"hex"') | 22023 | generator must be a JSON object | "length": 32
create_secret('n', generator => '{"size": 3}') | 22023 | unknown key "size" | "length": 32
create_secret('n', generator => '{"length": 0}') | 22023 | length is out of range | "length": 32
create_secret('n', generator => '{"length": -1}') | 22023 | length is out of range | "length": 32
create_secret('n', generator => '{"length": 4097}') | 22023 | length is out of range | "length": 32
create_secret('n', generator => '{"length": 1e30}') | 22023 | length | "length": 32
create_secret('n', generator => '{"length": 1.5}') | 22023 | length must be a whole number | "length": 32
create_secret('n', generator => '{"length": "8"}') | 22023 | length must be a whole number | "length": 32
create_secret('n', generator => '{"length": null}') | 22023 | length must be a whole number | "length": 32
create_secret('n', generator => '{"charset": 1}') | 22023 | charset must be a string | "charset"
create_secret('n', generator => '{"charset": ""}') | 22023 | at least two characters | "charset"
create_secret('n', generator => '{"charset": "a"}') | 22023 | at least two characters | "charset"
create_secret('n', generator => '{"charset": "aa"}') | 22023 | holds "a" twice | "charset"
create_secret('n', generator => '{"charset": "ab c"}') | 22023 | other than printable ASCII | "charset"
create_secret('n', generator => '{"charset": "äö"}') | 22023 | other than printable ASCII | "charset"
create_secret('n', generator => '{"charset": "Hex"}') | 22023 | charset "Hex" is not known | "charset"
create_secret('n', generator => '{"charset": "base64"}') | 22023 | "base64" is not known | "charset"
create_secret('n', generator => '{"require": "lower"}') | 22023 | require must be an array | "require"
create_secret('n', generator => '{"require": [1]}') | 22023 | require must be an array | "require"
create_secret('n', generator => '{"require": ["digits"]}') | 22023 | unknown class "digits" | "require"
create_secret('n', generator => '{"require": ["symbol"]}') | 22023 | requires symbol but | "require"
create_secret('n', generator => '{"charset": "hex", "require": ["upper"]}') | 22023 | requires upper but | "require"
create_secret('n', generator => '{"length": 1, "require": ["lower", "digit"]}') | 22023 | more classes than | "require"
create_secret('n', generator => jsonb_build_object('charset', repeat('x', 5000))) | 22023 | generator is too long | "length": 32
update_secret('s', generator => '{"length": 0}') | 22023 | length is out of range | "length": 32
# Metadata, description, addresses, retention.
create_secret('n', $V, metadata => '[]') | 22023 | metadata must be a JSON object | Use an object
create_secret('n', $V, metadata => 'null') | 22023 | metadata must be a JSON object | Use an object
create_secret('n', $V, metadata => '"text"') | 22023 | metadata must be a JSON object | Use an object
create_secret('n', $V, metadata => jsonb_build_object('k', repeat('x', 65536))) | 22023 | metadata is too long | Shorten it
update_secret('s', metadata => '1') | 22023 | metadata must be a JSON object | Use an object
create_secret('n', $V, description => repeat('d', 4097)) | 22023 | description is too long | Shorten it
put_secret('n', $V, description => repeat('d', 4097)) | 22023 | description is too long | Shorten it
put_secret('s', $V, description => repeat('ä', 2049)) | 22023 | description is too long | Shorten it
update_secret('s', description => repeat('d', 4097)) | 22023 | description is too long | Shorten it
create_secret('n', $V, allowed_ips => '{}') | 22023 | allowed_ips must hold addresses and no NULL | {10.0.0.0/8}
create_secret('n', $V, allowed_ips => '{10.0.0.0/8,NULL}') | 22023 | allowed_ips must hold addresses | {10.0.0.0/8}
update_secret('s', allowed_ips => '{}') | 22023 | allowed_ips must hold addresses | NULL means
update_secret('s', allowed_ips => '{NULL}') | 22023 | allowed_ips must hold addresses | NULL means
create_secret('n', $V, keep_versions => -1) | 22023 | keep_versions is out of range | Pass 0 to keep none
create_secret('n', $V, keep_versions => 1001) | 22023 | keep_versions is out of range | Pass 0 to keep none
update_secret('s', keep_versions => -1) | 22023 | keep_versions is out of range | Pass 0 to keep none
# Resets.
create_secret('n', $V, allowed_ips => array_fill('10.0.0.0/8'::cidr, array[1025])) | 22023 | allowed_ips has too many entries | Combine
update_secret('s', reset => array_fill('metadata'::text, array[10])) | 22023 | reset names more properties than there are | description, metadata
update_secret('s', reset => '{value}') | 22023 | reset names an unknown property | description, metadata
update_secret('s', reset => '{kind}') | 22023 | reset names an unknown property | description, metadata
update_secret('s', reset => '{Description}') | 22023 | reset names an unknown property | description, metadata
update_secret('s', reset => ARRAY[$V]) | 22023 | reset names an unknown property | description, metadata
update_secret('s', reset => '{description,NULL}') | 22023 | reset must not hold a NULL | description, metadata
update_secret('s', reset => '{grace_period}', grace_period => '1 s') | 22023 | grace_period is both given and reset | Pass one of the two
update_secret('s', reset => '{keep_versions}', keep_versions => 1) | 22023 | keep_versions is both given | Pass one of the two
update_secret('s', reset => '{description}', description => 'd') | 22023 | description is both given | Pass one of the two
update_secret('s', reset => '{metadata}', metadata => '{}') | 22023 | metadata is both given | Pass one of the two
update_secret('s', reset => '{generator}', generator => '{}') | 22023 | generator is both given | Pass one of the two
update_secret('s', reset => '{allowed_ips}', allowed_ips => '{::1}') | 22023 | allowed_ips is both given | Pass one of the two
update_secret('s', reset => '{rotation_interval}', rotation_interval => '1 s') | 22023 | rotation_interval is both | Pass one
# Bytes.
create_secret_bytes('n', NULL) | 22023 | value must not be null | Pass a value for value
put_secret_bytes('n', NULL) | 22023 | value must not be null | Pass a value for value
put_secret_bytes('s', $V) | 22023 | the secret is text, not binary | vault.put_secret()
put_secret_bytes('login', $V) | 22023 | holds a username and password, no bytes | update_secret
put_secret_bytes('n', $V, -1) | 22023 | expected_version must not be negative | 0 for a secret that must not exist
create_secret_bytes('n', $V, description => repeat('d', 4097)) | 22023 | description is too long | Shorten it
create_secret_bytes('n', $V, metadata => '[]') | 22023 | metadata must be a JSON object | {"team": "payments"}
create_secret_bytes('n', $V, grace_period => '-1 s') | 22023 | grace_period must not be negative | '30 days'
create_secret_bytes('n', $V, keep_versions => -1) | 22023 | keep_versions is out of range | Pass 0 to keep none
create_secret_bytes('n', $V, expires_in => '0') | 22023 | expires_in is too short | at least 1 second
create_secret_bytes('n', $V, allowed_ips => '{}') | 22023 | allowed_ips must hold addresses and no NULL | {10.0.0.0/8}
create_secret_bytes('s', $V) | 23505 | secret "s" already exists | put_secret
create_secret_bytes('n', '\x0') | 22023 | invalid hexadecimal data | -
# Ends.
create_secret('n', $V, expires_in => '999 ms') | 22023 | expires_in is too short | at least 1 second
create_secret('n', $V, expires_in => '-1 day') | 22023 | expires_in must not be negative | '30 days'
create_secret('n', $V, expires_in => '36501 days') | 22023 | expires_in is too long | 36500 days
update_secret('s', expires_in => '0') | 22023 | expires_in is too short | at least 1 second
update_secret('s', reset => '{expires_in}', expires_in => '1 s') | 22023 | expires_in is both given | Pass one of the two
delete_secret('s', NULL) | 22023 | recovery_window must not be null | Pass a value for recovery_window
delete_secret('s', '-1 s') | 22023 | recovery_window must not be negative | '30 days'
delete_secret('s', '36501 days') | 22023 | recovery_window is too long | 36500 days
restore_secret('s') | 55000 | secret "s" is not deleted | nothing to restore
rename_secret('s', 'n') | 42501 | permission denied to read secret | vault_reader
rename_secret('n', NULL) | 22023 | new_name must not be null | Pass a value for new_name
rename_secret('s', '/n') | 22023 | must not start with "/" | such as db/password
roll_back_secret('s', NULL) | 22023 | version must not be null | Pass a value for version
roll_back_secret('s', 2) | 55000 | is at version 2 already | list_versions
roll_back_secret('s', 3) | P0002 | has no version 3 | list_versions
# Versions, states, names that are taken.
put_secret('s', $V, -1) | 22023 | expected_version must not be negative | 0 for a secret that must not exist
put_secret('n', $V, -1) | 22023 | expected_version must not be negative | 0 for a secret that must not exist
update_secret('s', $V, expected_version => -1) | 22023 | expected_version must not be negative | the version you read
put_secret('s', $V, 1) | 55000 | not at the expected version | Read the secret again
put_secret('s', $V, 0) | 55000 | not at the expected version | Read the secret again
put_secret('n', $V, 1) | 55000 | not at the expected version | Read the secret again
update_secret('s', $V, expected_version => 3) | 55000 | not at the expected version | Read the secret again
update_secret('n', $V, expected_version => 0) | P0002 | does not exist | list_secrets
create_secret('s', $V) | 23505 | secret "s" already exists | put_secret
create_secret('login', $V) | 23505 | already exists | put_secret
rotate_secret('s') | 55000 | cannot be rotated | give it a generator
"##;

/// Refused to a reader.
pub const READERS: &str = r##"
read_secrets(NULL) | 22023 | names must not be null | Pass a value for names
read_secrets('{s,NULL}') | 22023 | names must not hold a NULL | db/password
read_secrets('{s,a//b}') | 22023 | must not contain an empty segment | db/password
read_secrets(array_fill('s'::text, array[257])) | 22023 | too many names at once | max_batch
rename_secret('s', 'n') | 42501 | permission denied to delete secret | vault_admin
verify_bytes('s', NULL) | 22023 | candidate must not be null | Pass a value for candidate
read_secret_bytes('login') | 22023 | holds a username and password | vault.read_secret()
read_secret_bytes('s', 0) | P0002 | no readable version 0 | list_versions
list_secrets(deleted => NULL) | 22023 | deleted must not be null | Pass a value for deleted
verify('s', NULL) | 22023 | candidate must not be null | Pass a value for candidate
read_secret('s', 0) | P0002 | no readable version 0 | list_versions
read_secret('s', -1) | P0002 | no readable version -1 | list_versions
read_secret('s', 3) | P0002 | no readable version 3 | list_versions
read_secret('s', 2147483647) | P0002 | no readable version | list_versions
get_secret('s', -2147483648) | P0002 | no readable version | list_versions
get_secret('s', 0) | P0002 | no readable version 0 | list_versions
list_secrets(NULL) | 22023 | pattern must not be null | Pass a value for pattern
list_secrets('') | 22023 | pattern must not be empty | Use *
list_secrets(repeat('*', 1025)) | 22023 | pattern is too long | db/*
list_secrets(E'a\n*') | 22023 | pattern contains a control | db/*
list_secrets(max_rows => NULL) | 22023 | max_rows must not be null | Pass a value for max_rows
list_secrets(max_rows => 0) | 22023 | max_rows is out of range | "after"
list_secrets(max_rows => -1) | 22023 | max_rows is out of range | "after"
list_secrets(max_rows => 10001) | 22023 | max_rows is out of range | "after"
# Rights come before anything else: nothing tells whether the name is there.
put_secret('s', $V) | 42501 | permission denied to update secret "s" | vault_admin
put_secret('n', $V) | 42501 | permission denied to update secret "n" | vault_admin
create_secret('s', $V) | 42501 | permission denied to create secret | vault_admin
delete_secret('n') | 42501 | permission denied to delete secret | vault_admin
restore_secret('n') | 42501 | permission denied to delete secret | vault_admin
roll_back_secret('s', 1) | 42501 | permission denied to rotate secret | vault_admin
put_secret_bytes('s', $V) | 42501 | permission denied to update secret "s" | vault_admin
create_secret_bytes('s', $V) | 42501 | permission denied to create secret | vault_admin
rotate_secret('s') | 42501 | permission denied to rotate secret | vault_admin
update_secret('n', $V) | 42501 | permission denied to update secret | vault_admin
"##;

/// Refused to an administrator: roles, bindings, tokens.
pub const ACCESS: &str = r##"
create_role(NULL) | 22023 | name must not be null | Pass a value for name
create_role('') | 22023 | role name must not be empty | 1 to 128 bytes
create_role(repeat('r', 129)) | 22023 | role name is too long | 1 to 128 bytes
create_role(E'r\nr') | 22023 | role name contains a control or invisible character | visible text
create_role(' r') | 22023 | role name must not start or end with a blank | visible text
create_role('n', repeat('d', 4097)) | 22023 | description is too long | Shorten
create_role('n', is_admin => NULL) | 22023 | is_admin must not be null | Pass a value for is_admin
create_role('n', permissions => NULL) | 22023 | permissions must not be null | Pass a value for permissions
create_role('n', permissions => 'nonsense') | 22P02 | invalid input syntax for type json | -
create_role('n', permissions => '{}') | 22023 | permissions must be a JSON array of rules | action and path
create_role('n', permissions => '"read"') | 22023 | permissions must be a JSON array of rules | action and path
create_role('n', permissions => 'null') | 22023 | permissions must be a JSON array of rules | action and path
create_role('n', permissions => '["read"]') | 22023 | permissions must be a JSON array of rules | action and path
create_role('n', permissions => '[[{"action":"list","path":"a"}]]') | 22023 | permissions must be a JSON array of rules | action and path
create_role('n', permissions => '[{"action":"list"}]') | 22023 | permissions must be a JSON array of rules | action and path
create_role('n', permissions => '[{"action":"list","path":1}]') | 22023 | permissions must be a JSON array of rules | action and path
create_role('n', permissions => '[{"action":"list","path":"a","deny":true}]') | 22023 | permissions must be a JSON array of rules | action and path
create_role('n', permissions => '[{"action":"list","path":"a"},{"action":"lst","path":"a"}]') | 22023 | unknown action | Use read, verify
create_role('n', permissions => '[{"action":"LIST","path":"a"}]') | 22023 | unknown action | Use read, verify
create_role('n', permissions => '[{"action":"","path":"a"}]') | 22023 | unknown action | Use read, verify
create_role('n', permissions => jsonb_build_array(jsonb_build_object('action', $V, 'path', $V))) | 22023 | unknown action | Use read, verify
create_role('n', permissions => jsonb_build_array(jsonb_build_object('action', 'list', 'path', concat($V, E'\n')))) | 22023 | pattern contains a control | Use * to match
create_role('n', permissions => '[{"action":"list","path":""}]') | 22023 | pattern must not be empty | Use * to match
create_role('n', permissions => jsonb_build_array(jsonb_build_object('action', 'list', 'path', repeat('p', 1025)))) | 22023 | pattern is too long | Use a shorter pattern
create_role('n', permissions => (SELECT jsonb_agg(jsonb_build_object('action', 'list', 'path', n::text)) FROM generate_series(1, 1001) n)) | 22023 | permissions have too many rules | stripe/*
create_role('r') | 23505 | role "r" already exists | set_role_permissions
create_role('admin') | 23505 | role "admin" already exists | set_role_permissions
set_role_permissions('absent', '[]') | P0002 | role "absent" does not exist | list_roles
set_role_permissions(NULL, '[]') | 22023 | role must not be null | Pass a value for role
set_role_permissions('r', NULL) | 22023 | permissions must not be null | Pass a value for permissions
set_role_permissions('r', '[{"action":"list","path":"a"},{}]') | 22023 | permissions must be a JSON array of rules | action and path
set_role_permissions('admin', '[]') | 55000 | role "admin" is built in | of your own
drop_role('absent') | P0002 | role "absent" does not exist | list_roles
drop_role('admin') | 55000 | role "admin" is built in | of your own
drop_role(NULL) | 22023 | name must not be null | Pass a value for name
bind_role('r', NULL) | 22023 | pg_role must not be null | Pass a value for pg_role
bind_role('r', 'no_such_role') | 42704 | does not exist | -
bind_role('r', '-') | P0002 | the Postgres role does not exist | pg_roles
bind_role('r', 4000000001::regrole) | P0002 | the Postgres role does not exist | pg_roles
bind_role('absent', 'app') | P0002 | role "absent" does not exist | list_roles
unbind_role('r', 'app') | P0002 | not bound | list_roles
unbind_role('absent', 'app') | P0002 | role "absent" does not exist | list_roles
unbind_role('r', NULL) | 22023 | pg_role must not be null | Pass a value for pg_role
create_token(NULL, 'r') | 22023 | name must not be null | Pass a value for name
create_token('', 'r') | 22023 | token name must not be empty | 1 to 128 bytes
create_token(E'\u200b', 'r') | 22023 | token name contains a control or invisible | visible text
create_token('n', NULL) | 22023 | role must not be null | Pass a value for role
create_token('n', 'absent') | P0002 | role "absent" does not exist | list_roles
create_token('n', 'r', '0') | 22023 | expires_in is too short | at least 1 second
create_token('n', 'r', '-1 day') | 22023 | expires_in must not be negative | '30 days'
create_token('n', 'r', '102 years') | 22023 | expires_in is too long | 36500 days
create_token('n', 'r', 'soon') | 22007 | invalid input syntax for type interval | -
create_token('t', 'r') | 23505 | token "t" already exists | revoke_token
revoke_token('absent') | P0002 | token "absent" does not exist | list_tokens
revoke_token(NULL) | 22023 | name must not be null | Pass a value for name
can(NULL, 'a') | 22023 | action must not be null | Pass a value for action
can('read', NULL) | 22023 | path must not be null | Pass a value for path
can('reading', 'a') | 22023 | unknown action | Use read, verify
can('read', '') | 22023 | pattern must not be empty | Use * to match
authenticate(NULL) | 22023 | token must not be null | Pass a value for token
authenticate($V) | 28000 | token is not valid | create_token
authenticate('') | 28000 | token is not valid | create_token
authenticate(concat('hvt_', repeat('A', 64))) | 28000 | token is not valid | create_token
authenticate(repeat('hvt_', 1000000)) | 28000 | token is not valid | create_token
"##;
