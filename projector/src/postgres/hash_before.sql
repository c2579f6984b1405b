SELECT hash FROM segments WHERE partition = $1 AND segment < $2 ORDER BY segment DESC LIMIT 1
