//! Processor time and memory of this process, from Linux's `/proc`, under the names that Prometheus's own clients use.

use std::fs;

use super::Telemetry;

/// Ticks a second of the times in `/proc/self/stat`, the same on every architecture.
const TICKS: f64 = 100.0;

/// Creates `process_cpu_seconds_total` and `process_resident_memory_bytes`.
pub fn observe(telemetry: &Telemetry) {
    telemetry.observed_seconds_counter("process_cpu", "Time that the processors spent on this process.", || {
        cpu_seconds(&fs::read_to_string("/proc/self/stat").ok()?)
    });
    telemetry.observed_gauge("process_resident_memory_bytes", &[], "Memory that this process has.", |gauge| {
        if let Some(bytes) = fs::read_to_string("/proc/self/status").ok().and_then(|status| resident_bytes(&status)) {
            gauge.observe(bytes, &[]);
        }
    });
}

fn cpu_seconds(stat: &str) -> Option<f64> {
    // The program's name, in parentheses, may contain spaces. User and system time are the 12th and 13th field after it.
    let fields = stat.rsplit_once(')')?.1.split_ascii_whitespace();
    let ticks = fields.skip(11).take(2).map(|field| field.parse::<u64>().ok()).sum::<Option<u64>>()?;
    Some(ticks as f64 / TICKS)
}

fn resident_bytes(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_memory_are_those_of_the_kernels_files() {
        let stat = "42 (a) b) S 1 42 42 0 -1 4194560 100 0 0 0 1234 66 0 0 20 0 9 0 100 1000 50";
        assert_eq!(cpu_seconds(stat), Some(13.0));
        assert_eq!(resident_bytes("Name:\ta\nVmRSS:\t    2048 kB\nThreads:\t9\n"), Some(2 << 20));
        assert_eq!((cpu_seconds(""), resident_bytes("")), (None, None));
        let telemetry = Telemetry::new("test").unwrap();
        observe(&telemetry);
        let text = telemetry.render().unwrap();
        assert!(
            text.contains("\nprocess_cpu_seconds_total ") && text.contains("\nprocess_resident_memory_bytes "),
            "{text}"
        );
    }
}
