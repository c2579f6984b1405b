-- What lists are filtered and ordered by is written with the row, not made of its JSON, which was parsed for each column
-- whenever the row was written.
ALTER TABLE product_rows
    ALTER COLUMN price_cents DROP EXPRESSION,
    ALTER COLUMN discontinued DROP EXPRESSION,
    ADD COLUMN available bigint;

UPDATE product_rows SET available = (data ->> 'available')::bigint;

DROP VIEW view_low_stock;
DROP VIEW low_stock_rows;
ALTER TABLE product_rows DROP COLUMN low_available;

ALTER TABLE product_rows ADD COLUMN low_available bigint GENERATED ALWAYS AS (
    CASE WHEN available <= 20 AND NOT discontinued THEN available END
) STORED;

CREATE INDEX product_rows_low_available ON product_rows (low_available, key) WHERE low_available IS NOT NULL;

CREATE VIEW low_stock_rows AS
SELECT key, version, low_available AS available FROM product_rows WHERE low_available IS NOT NULL;

CREATE VIEW view_low_stock AS
SELECT
    key, version, (SELECT row_to_json(fields) FROM (SELECT key AS product, available) AS fields) AS data
FROM low_stock_rows;

ALTER TABLE order_rows
    ALTER COLUMN customer DROP EXPRESSION,
    ALTER COLUMN status DROP EXPRESSION,
    ALTER COLUMN ordered_at DROP EXPRESSION;

ALTER TABLE sale_rows
    ALTER COLUMN product DROP EXPRESSION,
    ALTER COLUMN status DROP EXPRESSION,
    ALTER COLUMN opens_at DROP EXPRESSION;
