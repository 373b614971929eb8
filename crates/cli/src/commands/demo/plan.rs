//! What a demo migrates: one plan, or those of the matrix.

use states::v2::Capabilities;

use crate::args::{Budget, Demo, Generation, ServedModel};
use crate::exit::Nonsense;
use crate::guest::options::{Inject, InterruptKind, MachineOptions};
use crate::report::Summary;
use crate::units::{Rate, Size};

/// One migration, or one pair of processes that repeats it.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    /// The model of the devices.
    pub(super) model: ServedModel,
    /// Generation of the source's devices, and of the destination's.
    pub(super) generation: (Generation, Generation),
    /// How many devices.
    pub(super) devices: u8,
    /// Ports of each uart.
    pub(super) ports: u8,
    /// What the devices have of the state machine.
    pub(super) capabilities: Capabilities,
    /// Guest memory.
    pub(super) guest_memory: Size,
    /// Memory of each accelerator.
    pub(super) device_memory: Size,
    /// How fast the guest rewrites its memory.
    pub(super) dirty_rate: Rate,
    /// How fast each accelerator copies; 0 for idle devices of any model.
    pub(super) dma_rate: Rate,
    /// Whether the devices write into each other.
    pub(super) p2p: bool,
    /// vCPUs.
    pub(super) vcpus: u32,
    /// How the devices interrupt.
    pub(super) interrupts: Option<InterruptKind>,
    /// How many migrations, there and back.
    pub(super) repeat: u32,
    /// How each migration should go.
    pub(super) budget: Budget,
    /// The one thing to break.
    pub(super) inject: Option<Inject>,
}

/// What can be migrated to what, in the order of the matrix.
const GENERATIONS: [Generation; 3] =
    [Generation::V2, Generation::V1, Generation::Rfc2018];
const MODELS: [ServedModel; 2] = [ServedModel::Accel, ServedModel::Uart];

/// What is not said otherwise: of one migration, of one that is repeated (all of its
/// memory has to change every time), and in the matrix.
struct Usual {
    devices: u8,
    guest_memory: u64,
    device_memory: u64,
}

const ONCE: Usual =
    Usual { devices: 2, guest_memory: 512 << 20, device_memory: 64 << 20 };
const REPEATED: Usual =
    Usual { devices: 2, guest_memory: 128 << 20, device_memory: 32 << 20 };
const MATRIX: Usual =
    Usual { devices: 1, guest_memory: 16 << 20, device_memory: 16 << 20 };

impl Plan {
    /// Everything that was asked for: one plan, or 18 of them.
    ///
    /// # Errors
    /// Options that make no sense together.
    pub(super) fn all(demo: &Demo) -> Result<Vec<Plan>, Nonsense> {
        let one = Plan::one(demo);
        let memory = one.guest_memory.bytes();
        MachineOptions::fits_memory(memory)
            .map_err(|error| Nonsense(format!("--guest-memory: {error}")))?;
        if !demo.matrix {
            one.validate()?;
            return Ok(vec![one]);
        }
        if one.p2p {
            return Err(Nonsense(
                "no device of the matrix writes into another (--p2p): v1 and rfc2018 have \
                 no P2P state, and a uart reaches no device; try --devices 2 without it"
                    .to_owned(),
            ));
        }
        let mut plans = Vec::new();
        for model in MODELS {
            for source in GENERATIONS {
                for destination in GENERATIONS {
                    let generation = (source, destination);
                    plans.push(Plan { model, generation, ..one.clone() });
                }
            }
        }
        Ok(plans)
    }

    fn one(demo: &Demo) -> Plan {
        let usual = match demo.repeat {
            _ if demo.matrix => MATRIX,
            1 => ONCE,
            _ => REPEATED,
        };
        let size = |given: Option<Size>, usual| given.unwrap_or(Size::from_bytes(usual));
        Plan {
            model: demo.model,
            generation: demo.generation,
            devices: demo.devices.unwrap_or(usual.devices),
            ports: demo.ports,
            capabilities: demo.capabilities,
            guest_memory: size(demo.guest_memory, usual.guest_memory),
            device_memory: size(demo.device_memory, usual.device_memory),
            dirty_rate: demo.dirty_rate,
            dma_rate: demo.dma_rate,
            p2p: demo.p2p || demo.inject == Some(Inject::P2pLate),
            vcpus: demo.vcpus,
            interrupts: demo.interrupts,
            repeat: demo.repeat,
            budget: demo.budget.clone(),
            inject: demo.inject,
        }
    }

    fn validate(&self) -> Result<(), Nonsense> {
        let nonsense = |text: &str| Err(Nonsense(text.to_owned()));
        if self.p2p && self.model == ServedModel::Uart {
            return nonsense(
                "a uart has no DMA and reaches no other device: leave --p2p out, or \
                 use --model accel",
            );
        }
        if self.p2p && self.devices < 2 {
            return nonsense(
                "devices write into each other (--p2p) only where there are two: give \
                 --devices 2",
            );
        }
        Ok(())
    }

    /// The same, the other way round.
    pub(super) fn back(&self) -> Plan {
        let (source, destination) = self.generation;
        Plan { generation: (destination, source), ..self.clone() }
    }

    /// Says in a report what was migrated, and where it was refused, what the generation
    /// has to do with it.
    pub(super) fn name(&self, summary: &mut Summary) {
        let (source, destination) = self.generation;
        summary.interrupts = self.interrupts.map(|kind| kind.to_string());
        summary.model = Some(self.model.to_string());
        summary.source_generation = Some(source.to_string());
        summary.destination_generation = Some(destination.to_string());
        let regions = [source, destination].into_iter().find(|g| *g != Generation::V2);
        if let (Some(region), Some(error), true) =
            (regions, &mut summary.error, self.p2p && summary.outcome == "refused")
        {
            error.push_str(&format!(
                "; the generation {region} has no P2P state in which devices still answer \
                 each other: leave --p2p out, or use --generation v2"
            ));
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::{Cli, Command};

    fn plans(line: &str) -> Result<Vec<Plan>, Nonsense> {
        let line = ["vfio-migrate", "demo"].into_iter().chain(line.split_whitespace());
        match Cli::try_parse_from(line).expect("arguments").command {
            Command::Demo(demo) => Plan::all(&demo),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_pair_is_left_out_of_the_matrix() {
        let plans = plans("--matrix").expect("plans");
        let what = |plan: &Plan| format!("{} {:?}", plan.model, plan.generation);
        let all: std::collections::BTreeSet<String> = plans.iter().map(what).collect();
        assert_eq!((plans.len(), all.len()), (18, 18));
        assert!(plans.iter().all(|plan| plan.devices == 1 && !plan.p2p));
    }

    #[test]
    fn what_the_operator_says_is_forgotten_in_the_matrix_or_where_it_repeats() {
        let said = "--devices 2 --guest-memory 64M --device-memory 32M --ports 1";
        let all = ["--matrix", "--repeat 50"];
        let all = all.map(|how| plans(&format!("{how} {said}")).expect("plans"));
        for plan in all.concat() {
            assert_eq!((plan.devices, plan.ports), (2, 1));
            assert_eq!(plan.guest_memory.bytes(), 64 << 20);
            assert_eq!(plan.device_memory.bytes(), 32 << 20);
        }
    }

    #[test]
    fn nobody_says_that_a_demo_makes_no_sense() {
        for line in [
            "--p2p --devices 1",
            "--model uart --p2p",
            "--model uart --inject p2p-late",
            "--matrix --p2p",
            "--matrix --devices 2 --inject p2p-late",
            "--guest-memory 1M",
            "--matrix --guest-memory 4097K",
        ] {
            let error = plans(line).expect_err(line).to_string();
            assert!(error.contains("--"), "{error}");
        }
        for line in [
            "demo --matrix --model uart",
            "demo --matrix --generation v1",
            "demo --matrix --repeat 2",
            "demo --repeat 0",
        ] {
            let line = std::iter::once("vfio-migrate").chain(line.split(' '));
            assert_eq!(Cli::try_parse_from(line).expect_err("nonsense").exit_code(), 2);
        }
    }
}
