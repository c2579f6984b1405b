-- Logins of the services, which the first start of Postgres makes. What each may do is in the group roles, to which the
-- migrations grant it.
\set command_api `cat /run/secrets/command-api-postgres`
\set projector `cat /run/secrets/projector-postgres`
\set query_api `cat /run/secrets/query-api-postgres`
CREATE ROLE stampede_command_api NOLOGIN;
CREATE ROLE stampede_projector NOLOGIN;
CREATE ROLE stampede_query_api NOLOGIN;
CREATE ROLE command_api LOGIN PASSWORD :'command_api' IN ROLE stampede_command_api;
CREATE ROLE projector LOGIN PASSWORD :'projector' IN ROLE stampede_projector;
CREATE ROLE query_api LOGIN PASSWORD :'query_api' IN ROLE stampede_query_api;
