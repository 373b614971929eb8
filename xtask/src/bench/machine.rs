//! The machine that was measured on: a figure without it cannot be compared.

use std::{fs, thread};

use serde_json::{Value, json};

/// What the figures depend on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Machine {
    /// As the kernel names it.
    pub(super) cpu: String,
    /// Those that we may use.
    pub(super) cores: usize,
    /// Release of the kernel.
    pub(super) kernel: String,
}

impl Machine {
    /// Reads what the kernel says; what it does not say is "unknown".
    pub(super) fn read() -> Self {
        let file = |path| fs::read_to_string(path).unwrap_or_default();
        Self {
            cpu: cpu_model(&file("/proc/cpuinfo")).to_owned(),
            cores: thread::available_parallelism().map_or(1, usize::from),
            kernel: match file("/proc/sys/kernel/osrelease").trim() {
                "" => "unknown".to_owned(),
                release => release.to_owned(),
            },
        }
    }

    /// As the JSON output has it.
    pub(super) fn json(&self) -> Value {
        json!({ "cpu": self.cpu, "cores": self.cores, "kernel": self.kernel })
    }
}

fn cpu_model(cpuinfo: &str) -> &str {
    cpuinfo
        .lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(key, _)| key.trim() == "model name")
        .map_or("unknown", |(_, model)| model.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn model_is_found_or_unknown() {
        let text = "processor\t: 0\nmodel name\t: Some CPU @ 2.0GHz\nmodel name\t: X\n";
        assert_eq!(cpu_model(text), "Some CPU @ 2.0GHz");
        assert_eq!(cpu_model(""), "unknown");
    }
}
