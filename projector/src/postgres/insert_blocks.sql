INSERT INTO segment_blocks SELECT * FROM unnest($1::segment_blocks[])
