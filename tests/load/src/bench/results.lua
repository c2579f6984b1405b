-- wrk script: prints the results as a line of JSON.

function done(summary, latency)
   local errors = summary.errors
   local lost = errors.connect + errors.read + errors.write + errors.timeout
   io.write(string.format(
      '{"requests":%d,"failed":%d,"seconds":%.6f,"p50_us":%d,"p99_us":%d}\n',
      summary.requests + lost, errors.status + lost, summary.duration / 1e6,
      latency:percentile(50), latency:percentile(99)))
end
