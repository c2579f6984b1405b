-- What all services of this log have to be told alike, as the first of them was told it. The others compare at their start.
CREATE TABLE settings (
    name text PRIMARY KEY,
    value text NOT NULL
);
