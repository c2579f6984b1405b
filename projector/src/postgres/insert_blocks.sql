INSERT INTO segment_blocks (partition, segment, block, offsets, aggregates, versions, events, records)
SELECT * FROM unnest($1::segment_blocks[])
