-- Run once, when the database is made: the extension, and a role that can only read.
\getenv reader_password READER_PASSWORD

CREATE EXTENSION IF NOT EXISTS vector;

CREATE ROLE pgdefect_reader LOGIN PASSWORD :'reader_password' CONNECTION LIMIT 20;
REVOKE CREATE ON SCHEMA public FROM PUBLIC;

-- `pgdefect db upgrade` makes its schemas later; what it makes is readable at once.
ALTER DEFAULT PRIVILEGES GRANT USAGE ON SCHEMAS TO pgdefect_reader;
ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO pgdefect_reader;
ALTER DEFAULT PRIVILEGES GRANT EXECUTE ON FUNCTIONS TO pgdefect_reader;
