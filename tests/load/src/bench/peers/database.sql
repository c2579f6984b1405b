CREATE DATABASE peers;
\connect peers

CREATE TABLE stock (
    product int PRIMARY KEY,
    available bigint NOT NULL
);

INSERT INTO stock SELECT product, 1000000000 FROM generate_series(1, 2000) AS product;

CREATE TABLE reservations (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    product int NOT NULL,
    quantity int NOT NULL
);
