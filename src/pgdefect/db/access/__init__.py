"""Who may do what: the grants of each role, roles, and logins with passwords.

Uses `db.connection`. `db.schema` applies the grants after an upgrade.
"""
