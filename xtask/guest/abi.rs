//! Every size, offset and number of the room `abi`, with the C name it is known by.
//!
//! `--abi` prints them as lines `NAME VALUE`; `--abi-in-c` prints a C program that
//! prints the same lines from the headers. What a header does not have yet is `NAME -`:
//! macros can be asked for, and what is newer than Linux 6.12 and no macro stands behind
//! one that came with it.

use std::fmt::{Display, Write};
use std::mem::offset_of;

use abi::{
    device_info, dma_logging, errno, feature, group, iommufd, irq, pci, region, type1,
    v1, v2,
};
use bitflags::Flags;

/// One line.
struct Entry {
    /// The name, which is an expression of C.
    name: String,
    /// What has to be defined for the name to be known.
    macros: Option<String>,
    value: u64,
}

/// The lines of `abi`.
pub(crate) fn ours() -> String {
    let mut text = String::new();
    for Entry { name, value, .. } in entries() {
        let _ = writeln!(text, "{name} {value}");
    }
    text
}

/// The program that prints those of the headers.
pub(crate) fn program() -> String {
    let mut text = String::from(
        "#include <errno.h>\n#include <stddef.h>\n#include <stdio.h>\n\
         #include <linux/iommufd.h>\n#include <linux/pci_regs.h>\n\
         #include <linux/vfio.h>\n\nint main(void)\n{\n",
    );
    for Entry { name, macros, .. } in entries() {
        let line = format!(
            "\tprintf(\"%s %llu\\n\", \"{name}\", (unsigned long long)({name}));\n"
        );
        match macros {
            None => text.push_str(&line),
            Some(needed) => {
                let _ = write!(
                    text,
                    "#ifdef {needed}\n{line}#else\n\tputs(\"{name} -\");\n#endif\n"
                );
            }
        }
    }
    text.push_str("\treturn 0;\n}\n");
    text
}

/// `"C struct": our structure { our field, our field = "theirs", ... }`; with
/// `if MACRO` in front where the structure has grown together with that.
macro_rules! layout {
    ($to:expr, $(if $macros:ident,)? $theirs:literal: $ours:ty {
        $($field:ident $(= $name:literal)?),* $(,)?
    }) => {{
        #[allow(unused_mut, unused_assignments, reason = "one of two forms")]
        let mut macros: Option<&str> = None;
        $(macros = Some(stringify!($macros));)?
        $to.add(format!("sizeof(struct {})", $theirs), macros, size_of::<$ours>());
        $(
            #[allow(unused_mut, unused_assignments, reason = "one of two forms")]
            let mut name = stringify!($field);
            $(name = $name;)?
            let expression = format!("offsetof(struct {}, {name})", $theirs);
            $to.add(expression, macros, offset_of!($ours, $field));
        )*
    }};
}

/// `MACRO = our number, ...`
macro_rules! numbers {
    ($to:expr, $($name:ident = $value:expr),* $(,)?) => {
        $($to.number(stringify!($name), u64::from($value));)*
    };
}

/// Members of an enumeration, which no preprocessor knows.
macro_rules! members {
    ($to:expr, $($name:ident = $value:expr),* $(,)?) => {
        $($to.add(stringify!($name), None, $value as usize);)*
    };
}

#[derive(Default)]
struct Table(Vec<Entry>);

impl Table {
    fn add(&mut self, name: impl Display, macros: Option<&str>, value: usize) {
        let (name, macros) = (name.to_string(), macros.map(str::to_owned));
        self.0.push(Entry { name, macros, value: value as u64 });
    }

    fn number(&mut self, name: impl Display, value: u64) {
        let name = name.to_string();
        self.0.push(Entry { macros: Some(name.clone()), name, value });
    }

    /// All flags of a set, whose names begin alike.
    fn flags<T: Flags<Bits: Into<u64>>>(&mut self, start: &str) {
        for flag in T::FLAGS.iter().filter(|flag| flag.is_named()) {
            self.number(
                format_args!("{start}{}", flag.name()),
                flag.value().bits().into(),
            );
        }
    }
}

fn entries() -> Vec<Entry> {
    let mut to = Table::default();
    devices(&mut to);
    features(&mut to);
    ways(&mut to);
    tracking(&mut to);
    configuration(&mut to);
    for errno in errno::Errno::NAMED {
        to.number(errno, u64::from(errno.0.unsigned_abs()));
    }
    to.0
}

/// What a device consists of.
fn devices(to: &mut Table) {
    layout!(to, "vfio_device_info": device_info::DeviceInfo {
        argsz, flags, num_regions, num_irqs, cap_offset, pad
    });
    layout!(to, "vfio_info_cap_header": region::CapHeader { id, version, next });
    layout!(to, "vfio_region_info": region::RegionInfo {
        argsz, flags, index, cap_offset, size, offset
    });
    layout!(to, "vfio_region_info_cap_sparse_mmap": region::SparseMmap {
        header, nr_areas, reserved
    });
    layout!(to, "vfio_region_sparse_mmap_area": region::SparseMmapArea { offset, size });
    layout!(to, "vfio_region_info_cap_type": region::TypeCap {
        header, region_type = "type", subtype
    });
    layout!(to, "vfio_irq_info": irq::IrqInfo { argsz, flags, index, count });
    layout!(to, "vfio_irq_set": irq::IrqSet { argsz, flags, index, start, count });
    numbers!(
        to,
        VFIO_DEVICE_GET_INFO = device_info::DEVICE_GET_INFO,
        VFIO_DEVICE_RESET = device_info::DEVICE_RESET,
        VFIO_DEVICE_GET_REGION_INFO = region::DEVICE_GET_REGION_INFO,
        VFIO_DEVICE_GET_IRQ_INFO = irq::DEVICE_GET_IRQ_INFO,
        VFIO_DEVICE_SET_IRQS = irq::DEVICE_SET_IRQS,
        VFIO_IRQ_SET_DATA_TYPE_MASK = irq::IrqSetFlags::DATA_TYPE_MASK,
        VFIO_IRQ_SET_ACTION_TYPE_MASK = irq::IrqSetFlags::ACTION_TYPE_MASK,
    );
    to.flags::<device_info::DeviceFlags>("VFIO_DEVICE_FLAGS_");
    to.flags::<region::RegionFlags>("VFIO_REGION_INFO_FLAG_");
    to.flags::<irq::IrqInfoFlags>("VFIO_IRQ_INFO_");
    to.flags::<irq::IrqSetFlags>("VFIO_IRQ_SET_");
    for cap in region::RegionCap::NAMED {
        to.number(format_args!("VFIO_REGION_INFO_CAP_{cap}"), cap.0.into());
    }
    members!(
        to,
        VFIO_PCI_BAR0_REGION_INDEX = pci::region_index::BAR0,
        VFIO_PCI_BAR5_REGION_INDEX = pci::region_index::BAR5,
        VFIO_PCI_ROM_REGION_INDEX = pci::region_index::ROM,
        VFIO_PCI_CONFIG_REGION_INDEX = pci::region_index::CONFIG,
        VFIO_PCI_VGA_REGION_INDEX = pci::region_index::VGA,
        VFIO_PCI_NUM_REGIONS = pci::region_index::NUM,
        VFIO_PCI_INTX_IRQ_INDEX = pci::irq_index::INTX,
        VFIO_PCI_MSI_IRQ_INDEX = pci::irq_index::MSI,
        VFIO_PCI_MSIX_IRQ_INDEX = pci::irq_index::MSIX,
        VFIO_PCI_ERR_IRQ_INDEX = pci::irq_index::ERR,
        VFIO_PCI_REQ_IRQ_INDEX = pci::irq_index::REQ,
        VFIO_PCI_NUM_IRQS = pci::irq_index::NUM,
    );
}

/// Features, and the generations of migration.
fn features(to: &mut Table) {
    layout!(to, "vfio_device_feature": feature::FeatureHeader { argsz, flags });
    layout!(to, "vfio_device_feature_migration": v2::Migration { flags });
    layout!(to, "vfio_device_feature_mig_state": v2::DeviceMigState {
        device_state, data_fd
    });
    layout!(to, "vfio_precopy_info": v2::PrecopyInfo {
        argsz, flags, initial_bytes, dirty_bytes
    });
    layout!(to, "vfio_device_feature_mig_data_size": v2::MigDataSize {
        stop_copy_length
    });
    layout!(to, "vfio_device_feature_dma_logging_control": dma_logging::Control {
        page_size, num_ranges, reserved = "__reserved", ranges
    });
    layout!(to, "vfio_device_feature_dma_logging_range": dma_logging::Range {
        iova, length
    });
    layout!(to, "vfio_device_feature_dma_logging_report": dma_logging::Report {
        iova, length, page_size, bitmap
    });
    layout!(to, "vfio_device_migration_info": v1::V1Info {
        device_state, reserved, pending_bytes, data_offset, data_size
    });
    numbers!(
        to,
        VFIO_DEVICE_FEATURE = feature::DEVICE_FEATURE,
        VFIO_DEVICE_FEATURE_MASK = feature::FeatureFlags::INDEX_MASK,
        VFIO_MIG_GET_PRECOPY_INFO = v2::MIG_GET_PRECOPY_INFO,
        VFIO_REGION_TYPE_MIGRATION_DEPRECATED = v1::V1_REGION_TYPE,
        VFIO_REGION_SUBTYPE_MIGRATION_DEPRECATED = v1::V1_REGION_SUBTYPE,
        VFIO_DEVICE_STATE_V1_STOP = v1::StateBits::STOPPED.bits(),
        VFIO_DEVICE_STATE_MASK = v1::StateBits::MASK.bits(),
    );
    to.flags::<feature::FeatureFlags>("VFIO_DEVICE_FEATURE_");
    to.flags::<v2::MigrationFlags>("VFIO_MIGRATION_");
    to.flags::<v2::PrecopyFlags>("VFIO_PRECOPY_INFO_");
    to.flags::<v1::StateBits>("VFIO_DEVICE_STATE_V1_");
    for feature in feature::Feature::NAMED {
        let name = feature.name().unwrap_or_default();
        // Those of our own are for vfio-user.
        if !name.starts_with("VFIO_MIGRATE_") {
            let name = name.replace("INFO_V2", "INFOv2");
            to.number(format_args!("VFIO_DEVICE_FEATURE_{name}"), feature.0.into());
        }
    }
    for state in v2::DeviceState::NAMED {
        to.add(format_args!("VFIO_DEVICE_STATE_{state}"), None, state.0 as usize);
    }
    to.add("VFIO_DEVICE_STATE_NR", None, v2::DeviceState::NAMED.len());
}

/// Groups, containers and IOMMUFD.
fn ways(to: &mut Table) {
    layout!(to, "vfio_group_status": group::GroupStatus { argsz, flags });
    layout!(to, if VFIO_DEVICE_BIND_FLAG_TOKEN,
    "vfio_device_bind_iommufd": iommufd::BindIommufd {
        argsz, flags, iommufd, out_devid, token_uuid_ptr
    });
    layout!(to, if VFIO_DEVICE_ATTACH_PASID,
    "vfio_device_attach_iommufd_pt": iommufd::AttachIommufd {
        argsz, flags, pt_id, pasid
    });
    layout!(to, if VFIO_DEVICE_DETACH_PASID,
        "vfio_device_detach_iommufd_pt": iommufd::DetachIommufd { argsz, flags, pasid });
    layout!(to, "iommu_destroy": iommufd::Destroy { size, id });
    layout!(to, "iommu_ioas_alloc": iommufd::IoasAlloc { size, flags, out_ioas_id });
    layout!(to, "iommu_ioas_map": iommufd::IoasMap {
        size, flags, ioas_id, reserved = "__reserved", user_va, length, iova
    });
    layout!(to, "iommu_ioas_unmap": iommufd::IoasUnmap { size, ioas_id, iova, length });
    layout!(to, "iommu_option": iommufd::IommuOption {
        size, option_id, op, reserved = "__reserved", object_id, val64
    });
    // The name of `data_type`, and whether PASIDs are told, came after Linux 6.12; both
    // were unused bytes of the same structure.
    layout!(to, "iommu_hw_info": iommufd::HwInfo {
        size, flags, dev_id, data_len, data_uptr, data_type = "out_data_type",
        out_capabilities
    });
    layout!(to, "iommu_hwpt_alloc": iommufd::HwptAlloc {
        size, flags, dev_id, pt_id, out_hwpt_id, reserved = "__reserved", data_type,
        data_len, data_uptr, fault_id, reserved2 = "__reserved2"
    });
    layout!(to, "iommu_hwpt_set_dirty_tracking": iommufd::SetDirtyTracking {
        size, flags, hwpt_id, reserved = "__reserved"
    });
    layout!(to, "iommu_hwpt_get_dirty_bitmap": iommufd::GetDirtyBitmap {
        size, hwpt_id, flags, reserved = "__reserved", iova, length, page_size, data
    });
    numbers!(
        to,
        VFIO_API_VERSION = group::API_VERSION.unsigned_abs(),
        VFIO_GET_API_VERSION = group::GET_API_VERSION,
        VFIO_CHECK_EXTENSION = group::CHECK_EXTENSION,
        VFIO_SET_IOMMU = group::SET_IOMMU,
        VFIO_GROUP_GET_STATUS = group::GROUP_GET_STATUS,
        VFIO_GROUP_SET_CONTAINER = group::GROUP_SET_CONTAINER,
        VFIO_GROUP_UNSET_CONTAINER = group::GROUP_UNSET_CONTAINER,
        VFIO_GROUP_GET_DEVICE_FD = group::GROUP_GET_DEVICE_FD,
        VFIO_DEVICE_BIND_IOMMUFD = iommufd::DEVICE_BIND_IOMMUFD,
        VFIO_DEVICE_ATTACH_IOMMUFD_PT = iommufd::DEVICE_ATTACH_IOMMUFD_PT,
        VFIO_DEVICE_DETACH_IOMMUFD_PT = iommufd::DEVICE_DETACH_IOMMUFD_PT,
        IOMMU_DESTROY = iommufd::DESTROY,
        IOMMU_IOAS_ALLOC = iommufd::IOAS_ALLOC,
        IOMMU_IOAS_MAP = iommufd::IOAS_MAP,
        IOMMU_IOAS_UNMAP = iommufd::IOAS_UNMAP,
        IOMMU_OPTION = iommufd::OPTION,
        IOMMU_HWPT_ALLOC = iommufd::HWPT_ALLOC,
        IOMMU_GET_HW_INFO = iommufd::GET_HW_INFO,
        IOMMU_HWPT_SET_DIRTY_TRACKING = iommufd::HWPT_SET_DIRTY_TRACKING,
        IOMMU_HWPT_GET_DIRTY_BITMAP = iommufd::HWPT_GET_DIRTY_BITMAP,
    );
    members!(
        to,
        IOMMU_IOAS_MAP_FIXED_IOVA = iommufd::IoasMapFlags::FIXED_IOVA.bits(),
        IOMMU_IOAS_MAP_WRITEABLE = iommufd::IoasMapFlags::WRITEABLE.bits(),
        IOMMU_IOAS_MAP_READABLE = iommufd::IoasMapFlags::READABLE.bits(),
        IOMMU_OPTION_HUGE_PAGES = iommufd::IommuOption::HUGE_PAGES,
        IOMMU_OPTION_OP_SET = iommufd::IommuOption::SET,
        IOMMU_HW_CAP_DIRTY_TRACKING = iommufd::HwCapabilities::DIRTY_TRACKING.bits(),
        IOMMU_HWPT_ALLOC_DIRTY_TRACKING = iommufd::HwptAllocFlags::DIRTY_TRACKING.bits(),
        IOMMU_HWPT_DIRTY_TRACKING_ENABLE = iommufd::SetDirtyTrackingFlags::ENABLE.bits(),
        IOMMU_HWPT_GET_DIRTY_BITMAP_NO_CLEAR =
            iommufd::GetDirtyBitmapFlags::NO_CLEAR.bits(),
    );
    to.flags::<group::GroupFlags>("VFIO_GROUP_FLAGS_");
    for extension in group::Extension::NAMED {
        let name = extension.name().unwrap_or_default().replace("TYPE1V2", "TYPE1v2");
        to.number(format_args!("VFIO_{name}"), extension.0.into());
    }
}

/// The container's mappings and dirty pages.
fn tracking(to: &mut Table) {
    layout!(to, "vfio_iommu_type1_info": type1::Type1Info {
        argsz, flags, iova_pgsizes, cap_offset, pad
    });
    layout!(to, "vfio_iommu_type1_info_cap_migration": type1::CapMigration {
        header, flags, pgsize_bitmap, max_dirty_bitmap_size
    });
    layout!(to, "vfio_iommu_type1_dma_map": type1::DmaMap {
        argsz, flags, vaddr, iova, size
    });
    layout!(to, "vfio_iommu_type1_dma_unmap": type1::DmaUnmap {
        argsz, flags, iova, size
    });
    layout!(to, "vfio_bitmap": type1::BitmapBuffer { pgsize, size, data });
    layout!(to, "vfio_iommu_type1_dirty_bitmap": type1::DirtyBitmap { argsz, flags });
    layout!(to, "vfio_iommu_type1_dirty_bitmap_get": type1::DirtyBitmapGet {
        iova, size, bitmap
    });
    numbers!(
        to,
        VFIO_IOMMU_GET_INFO = type1::IOMMU_GET_INFO,
        VFIO_IOMMU_MAP_DMA = type1::IOMMU_MAP_DMA,
        VFIO_IOMMU_UNMAP_DMA = type1::IOMMU_UNMAP_DMA,
        VFIO_IOMMU_DIRTY_PAGES = type1::IOMMU_DIRTY_PAGES,
        VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE = type1::Type1Cap::IOVA_RANGE.0,
        VFIO_IOMMU_TYPE1_INFO_CAP_MIGRATION = type1::Type1Cap::MIGRATION.0,
        VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL = type1::Type1Cap::DMA_AVAIL.0,
    );
    to.flags::<type1::Type1InfoFlags>("VFIO_IOMMU_INFO_");
    to.flags::<type1::DmaMapFlags>("VFIO_DMA_MAP_FLAG_");
    to.flags::<type1::DmaUnmapFlags>("VFIO_DMA_UNMAP_FLAG_");
    to.flags::<type1::DirtyPagesFlags>("VFIO_IOMMU_DIRTY_PAGES_FLAG_");
}

/// PCI's configuration space.
fn configuration(to: &mut Table) {
    use pci::capability::{msix, pcie, pm};
    use pci::config;
    numbers!(
        to,
        PCI_VENDOR_ID = config::VENDOR_ID,
        PCI_DEVICE_ID = config::DEVICE_ID,
        PCI_COMMAND = config::COMMAND,
        PCI_COMMAND_IO = config::Command::IO.bits(),
        PCI_COMMAND_MEMORY = config::Command::MEMORY.bits(),
        PCI_COMMAND_MASTER = config::Command::BUS_MASTER.bits(),
        PCI_COMMAND_PARITY = config::Command::PARITY.bits(),
        PCI_COMMAND_SERR = config::Command::SERR.bits(),
        PCI_COMMAND_INTX_DISABLE = config::Command::INTX_DISABLE.bits(),
        PCI_STATUS = config::STATUS,
        PCI_STATUS_INTERRUPT = config::Status::INTERRUPT.bits(),
        PCI_STATUS_CAP_LIST = config::Status::CAPABILITY_LIST.bits(),
        PCI_REVISION_ID = config::REVISION_ID,
        PCI_CLASS_PROG = config::PROG_IF,
        PCI_CLASS_DEVICE = config::SUBCLASS,
        PCI_CACHE_LINE_SIZE = config::CACHE_LINE_SIZE,
        PCI_LATENCY_TIMER = config::LATENCY_TIMER,
        PCI_HEADER_TYPE = config::HEADER_TYPE,
        PCI_BIST = config::BIST,
        PCI_BASE_ADDRESS_0 = config::BAR0,
        PCI_BASE_ADDRESS_SPACE_IO = config::BAR_IO,
        PCI_BASE_ADDRESS_MEM_TYPE_64 = config::BAR_MEMORY_64,
        PCI_BASE_ADDRESS_MEM_PREFETCH = config::BAR_PREFETCHABLE,
        PCI_CARDBUS_CIS = config::CARDBUS_CIS,
        PCI_SUBSYSTEM_VENDOR_ID = config::SUBSYSTEM_VENDOR_ID,
        PCI_SUBSYSTEM_ID = config::SUBSYSTEM_ID,
        PCI_ROM_ADDRESS = config::ROM_ADDRESS,
        PCI_ROM_ADDRESS_ENABLE = config::ROM_ENABLE,
        PCI_CAPABILITY_LIST = config::CAPABILITY_LIST,
        PCI_INTERRUPT_LINE = config::INTERRUPT_LINE,
        PCI_INTERRUPT_PIN = config::INTERRUPT_PIN,
        PCI_MIN_GNT = config::MIN_GNT,
        PCI_MAX_LAT = config::MAX_LAT,
        PCI_CFG_SPACE_SIZE = config::SIZE,
        PCI_CFG_SPACE_EXP_SIZE = config::EXTENDED_SIZE,
        PCI_PM_PMC = pm::CAPABILITIES,
        PCI_PM_CTRL = pm::CONTROL,
        PCI_PM_SIZEOF = pm::SIZE,
        PCI_PM_CTRL_STATE_MASK = pm::CONTROL_STATE_MASK,
        PCI_PM_CTRL_NO_SOFT_RESET = pm::CONTROL_NO_SOFT_RESET,
        PCI_PM_CTRL_PME_ENABLE = pm::CONTROL_PME_ENABLE,
        PCI_PM_CTRL_PME_STATUS = pm::CONTROL_PME_STATUS,
        PCI_MSIX_FLAGS = msix::CONTROL,
        PCI_MSIX_FLAGS_QSIZE = msix::CONTROL_TABLE_SIZE,
        PCI_MSIX_FLAGS_MASKALL = msix::CONTROL_MASK_ALL,
        PCI_MSIX_FLAGS_ENABLE = msix::CONTROL_ENABLE,
        PCI_MSIX_TABLE = msix::TABLE,
        PCI_MSIX_PBA = msix::PBA,
        PCI_MSIX_TABLE_BIR = msix::BAR_MASK,
        PCI_CAP_MSIX_SIZEOF = msix::SIZE,
        PCI_MSIX_ENTRY_SIZE = msix::ENTRY_SIZE,
        PCI_MSIX_ENTRY_LOWER_ADDR = msix::ENTRY_ADDRESS_LOW,
        PCI_MSIX_ENTRY_UPPER_ADDR = msix::ENTRY_ADDRESS_HIGH,
        PCI_MSIX_ENTRY_DATA = msix::ENTRY_DATA,
        PCI_MSIX_ENTRY_VECTOR_CTRL = msix::ENTRY_CONTROL,
        PCI_MSIX_ENTRY_CTRL_MASKBIT = msix::ENTRY_CONTROL_MASKED,
        PCI_EXP_FLAGS = pcie::FLAGS,
        PCI_EXP_DEVCAP = pcie::DEVICE_CAPABILITIES,
        PCI_EXP_DEVCAP_FLR = pcie::DEVICE_CAPABILITIES_FLR,
        PCI_EXP_DEVCTL = pcie::DEVICE_CONTROL,
        PCI_EXP_DEVCTL_BCR_FLR = pcie::DEVICE_CONTROL_FLR,
        PCI_EXP_DEVSTA = pcie::DEVICE_STATUS,
        PCI_EXP_DEVSTA_TRPND = pcie::DEVICE_STATUS_PENDING,
    );
}
