INSERT INTO journal_tail SELECT * FROM unnest($1::journal_tail[])
