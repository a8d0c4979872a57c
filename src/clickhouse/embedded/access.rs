//! What the engine's one user may do: everything with tables, nothing with files, networks or other users.
//!
//! Whoever reaches the port speaks as this user, without a password; on a shared machine that is every local user. The
//! library lets its user read and write any file that the process can, and call any URL, which would make the port
//! a way into this user's account. A server's sources need a grant each; here they are simply not granted.

/// The file's name in the engine's folder.
pub(super) const FILE: &str = "engine-users.xml";

/// The library reads its users from a file in this form. `TABLE ENGINE` is left out on purpose: without it the engines
/// that are no sources (`MergeTree` and the like) are allowed, and `File`, `URL` and the like are not. Dictionaries are
/// left out because their sources are files and networks again.
pub(super) const USERS: &str = "<clickhouse>
    <!-- Written anew at every start. -->
    <profiles><default></default></profiles>
    <quotas><default></default></quotas>
    <users><default>
        <password></password>
        <networks><ip>::/0</ip></networks>
        <profile>default</profile>
        <quota>default</quota>
        <grants><query>GRANT SELECT, INSERT, ALTER, DROP, UNDROP TABLE, TRUNCATE, OPTIMIZE, SHOW, KILL QUERY, SYSTEM, dictGet,
            CREATE DATABASE, CREATE TABLE, CREATE VIEW, CREATE ARBITRARY TEMPORARY TABLE, CREATE FUNCTION, DROP FUNCTION,
            INTROSPECTION, CHECK ON *.*</query></grants>
    </default></users>
</clickhouse>
";
