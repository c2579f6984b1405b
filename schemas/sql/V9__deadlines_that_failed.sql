-- Why a deadline cannot have its effect, until an operator says what is to become of it. It is leased for ever meanwhile.
ALTER TABLE deadlines ADD COLUMN reason text;

CREATE INDEX deadlines_failed ON deadlines (aggregate) WHERE reason IS NOT NULL;
