//! Sizes, alignments, offsets and numbers against the published bindings
//! (vfio-bindings and iommufd-bindings), while compiling.

use iommufd_bindings::iommufd as i;
use std::mem::offset_of;
use vfio_bindings::bindings::vfio as k;
use vfio_migrate_abi::{
    device_info, dma_logging, errno::Errno, feature, group, iommufd, irq, pci, region,
    type1, v1, v2, vfio_user,
};

/// `ours => theirs: our field = their field, ...`; with `@array` where theirs ends with
/// an array that raises its alignment, and ours leaves the array to the reader.
macro_rules! same {
    (@array $ours:ty => $theirs:ty: $($field:ident = $their_field:ident),*) => {
        const _: () = {
            assert!(size_of::<$ours>() == size_of::<$theirs>());
            assert!(align_of::<$ours>() <= align_of::<$theirs>());
            $(assert!(offset_of!($ours, $field) == offset_of!($theirs, $their_field));)*
        };
    };
    ($ours:ty => $theirs:ty: $($field:ident = $their_field:ident),*) => {
        const _: () = assert!(align_of::<$ours>() == align_of::<$theirs>());
        same!(@array $ours => $theirs: $($field = $their_field),*);
    };
}

same!(v2::Migration => k::vfio_device_feature_migration: flags = flags);
same!(v2::DeviceMigState => k::vfio_device_feature_mig_state:
    device_state = device_state, data_fd = data_fd);
same!(v2::PrecopyInfo => k::vfio_precopy_info:
    argsz = argsz, flags = flags, initial_bytes = initial_bytes, dirty_bytes = dirty_bytes);
same!(v2::MigDataSize => k::vfio_device_feature_mig_data_size:
    stop_copy_length = stop_copy_length);
same!(feature::FeatureHeader => k::vfio_device_feature: argsz = argsz, flags = flags);
same!(dma_logging::Control => k::vfio_device_feature_dma_logging_control:
    page_size = page_size, num_ranges = num_ranges, reserved = __reserved, ranges = ranges);
same!(dma_logging::Range => k::vfio_device_feature_dma_logging_range:
    iova = iova, length = length);
same!(dma_logging::Report => k::vfio_device_feature_dma_logging_report:
    iova = iova, length = length, page_size = page_size, bitmap = bitmap);
same!(device_info::DeviceInfo => k::vfio_device_info:
    argsz = argsz, flags = flags, num_regions = num_regions, num_irqs = num_irqs,
    cap_offset = cap_offset, pad = pad);
same!(region::RegionInfo => k::vfio_region_info:
    argsz = argsz, flags = flags, index = index, cap_offset = cap_offset, size = size,
    offset = offset);
same!(region::CapHeader => k::vfio_info_cap_header:
    id = id, version = version, next = next);
same!(@array region::SparseMmap => k::vfio_region_info_cap_sparse_mmap:
    header = header, nr_areas = nr_areas, reserved = reserved);
same!(region::SparseMmapArea => k::vfio_region_sparse_mmap_area:
    offset = offset, size = size);
same!(region::TypeCap => k::vfio_region_info_cap_type:
    header = header, region_type = type_, subtype = subtype);
same!(v1::V1Info => k::vfio_device_migration_info:
    device_state = device_state, reserved = reserved, pending_bytes = pending_bytes,
    data_offset = data_offset, data_size = data_size);
same!(type1::Type1Info => k::vfio_iommu_type1_info:
    argsz = argsz, flags = flags, iova_pgsizes = iova_pgsizes, cap_offset = cap_offset,
    pad = pad);
same!(type1::CapMigration => k::vfio_iommu_type1_info_cap_migration:
    header = header, flags = flags, pgsize_bitmap = pgsize_bitmap,
    max_dirty_bitmap_size = max_dirty_bitmap_size);
same!(type1::DmaMap => k::vfio_iommu_type1_dma_map:
    argsz = argsz, flags = flags, vaddr = vaddr, iova = iova, size = size);
same!(type1::DmaUnmap => k::vfio_iommu_type1_dma_unmap:
    argsz = argsz, flags = flags, iova = iova, size = size);
same!(type1::BitmapBuffer => k::vfio_bitmap: pgsize = pgsize, size = size, data = data);
same!(type1::DirtyBitmap => k::vfio_iommu_type1_dirty_bitmap:
    argsz = argsz, flags = flags);
same!(type1::DirtyBitmapGet => k::vfio_iommu_type1_dirty_bitmap_get:
    iova = iova, size = size, bitmap = bitmap);
same!(irq::IrqInfo => k::vfio_irq_info:
    argsz = argsz, flags = flags, index = index, count = count);
same!(irq::IrqSet => k::vfio_irq_set:
    argsz = argsz, flags = flags, index = index, start = start, count = count);

same!(group::GroupStatus => k::vfio_group_status: argsz = argsz, flags = flags);
same!(iommufd::BindIommufd => k::vfio_device_bind_iommufd:
    argsz = argsz, flags = flags, iommufd = iommufd, out_devid = out_devid,
    token_uuid_ptr = token_uuid_ptr);
same!(iommufd::AttachIommufd => k::vfio_device_attach_iommufd_pt:
    argsz = argsz, flags = flags, pt_id = pt_id, pasid = pasid);
same!(iommufd::DetachIommufd => k::vfio_device_detach_iommufd_pt:
    argsz = argsz, flags = flags, pasid = pasid);
same!(iommufd::Destroy => i::iommu_destroy: size = size, id = id);
same!(iommufd::IoasAlloc => i::iommu_ioas_alloc:
    size = size, flags = flags, out_ioas_id = out_ioas_id);
same!(iommufd::IoasMap => i::iommu_ioas_map:
    size = size, flags = flags, ioas_id = ioas_id, reserved = __reserved,
    user_va = user_va, length = length, iova = iova);
same!(iommufd::IoasUnmap => i::iommu_ioas_unmap:
    size = size, ioas_id = ioas_id, iova = iova, length = length);
same!(iommufd::IommuOption => i::iommu_option:
    size = size, option_id = option_id, op = op, reserved = __reserved,
    object_id = object_id, val64 = val64);
same!(iommufd::HwInfo => i::iommu_hw_info:
    size = size, flags = flags, dev_id = dev_id, data_len = data_len,
    data_uptr = data_uptr, data_type = __bindgen_anon_1,
    out_max_pasid_log2 = out_max_pasid_log2, reserved = __reserved,
    out_capabilities = out_capabilities);
same!(iommufd::HwptAlloc => i::iommu_hwpt_alloc:
    size = size, flags = flags, dev_id = dev_id, pt_id = pt_id,
    out_hwpt_id = out_hwpt_id, reserved = __reserved, data_type = data_type,
    data_len = data_len, data_uptr = data_uptr, fault_id = fault_id,
    reserved2 = __reserved2);
same!(iommufd::SetDirtyTracking => i::iommu_hwpt_set_dirty_tracking:
    size = size, flags = flags, hwpt_id = hwpt_id, reserved = __reserved);
same!(iommufd::GetDirtyBitmap => i::iommu_hwpt_get_dirty_bitmap:
    size = size, hwpt_id = hwpt_id, flags = flags, reserved = __reserved, iova = iova,
    length = length, page_size = page_size, data = data);

#[test]
fn no_state_or_flag_differs_from_the_header() {
    let states = [
        (v2::DeviceState::ERROR, k::vfio_device_mig_state_VFIO_DEVICE_STATE_ERROR),
        (v2::DeviceState::STOP, k::vfio_device_mig_state_VFIO_DEVICE_STATE_STOP),
        (v2::DeviceState::RUNNING, k::vfio_device_mig_state_VFIO_DEVICE_STATE_RUNNING),
        (
            v2::DeviceState::STOP_COPY,
            k::vfio_device_mig_state_VFIO_DEVICE_STATE_STOP_COPY,
        ),
        (v2::DeviceState::RESUMING, k::vfio_device_mig_state_VFIO_DEVICE_STATE_RESUMING),
        (
            v2::DeviceState::RUNNING_P2P,
            k::vfio_device_mig_state_VFIO_DEVICE_STATE_RUNNING_P2P,
        ),
        (v2::DeviceState::PRE_COPY, k::vfio_device_mig_state_VFIO_DEVICE_STATE_PRE_COPY),
        (
            v2::DeviceState::PRE_COPY_P2P,
            k::vfio_device_mig_state_VFIO_DEVICE_STATE_PRE_COPY_P2P,
        ),
    ];
    for (ours, theirs) in states {
        assert_eq!(ours.0, theirs, "{ours}");
    }
    assert_eq!(
        v2::DeviceState::NAMED.len(),
        k::vfio_device_mig_state_VFIO_DEVICE_STATE_NR as usize
    );
    let flags = [
        (v2::MigrationFlags::STOP_COPY.bits(), k::VFIO_MIGRATION_STOP_COPY),
        (v2::MigrationFlags::P2P.bits(), k::VFIO_MIGRATION_P2P),
        (v2::MigrationFlags::PRE_COPY.bits(), k::VFIO_MIGRATION_PRE_COPY),
        (v2::PrecopyFlags::REINIT.bits().into(), k::VFIO_PRECOPY_INFO_REINIT),
        (feature::FeatureFlags::INDEX_MASK.into(), k::VFIO_DEVICE_FEATURE_MASK),
        (feature::FeatureFlags::GET.bits().into(), k::VFIO_DEVICE_FEATURE_GET),
        (feature::FeatureFlags::SET.bits().into(), k::VFIO_DEVICE_FEATURE_SET),
        (feature::FeatureFlags::PROBE.bits().into(), k::VFIO_DEVICE_FEATURE_PROBE),
        (device_info::DeviceFlags::RESET.bits().into(), k::VFIO_DEVICE_FLAGS_RESET),
        (device_info::DeviceFlags::PCI.bits().into(), k::VFIO_DEVICE_FLAGS_PCI),
        (device_info::DeviceFlags::PLATFORM.bits().into(), k::VFIO_DEVICE_FLAGS_PLATFORM),
        (device_info::DeviceFlags::AMBA.bits().into(), k::VFIO_DEVICE_FLAGS_AMBA),
        (device_info::DeviceFlags::CCW.bits().into(), k::VFIO_DEVICE_FLAGS_CCW),
        (device_info::DeviceFlags::AP.bits().into(), k::VFIO_DEVICE_FLAGS_AP),
        (device_info::DeviceFlags::FSL_MC.bits().into(), k::VFIO_DEVICE_FLAGS_FSL_MC),
        (device_info::DeviceFlags::CAPS.bits().into(), k::VFIO_DEVICE_FLAGS_CAPS),
        (device_info::DeviceFlags::CDX.bits().into(), k::VFIO_DEVICE_FLAGS_CDX),
        (region::RegionFlags::READ.bits().into(), k::VFIO_REGION_INFO_FLAG_READ),
        (region::RegionFlags::WRITE.bits().into(), k::VFIO_REGION_INFO_FLAG_WRITE),
        (region::RegionFlags::MMAP.bits().into(), k::VFIO_REGION_INFO_FLAG_MMAP),
        (region::RegionFlags::CAPS.bits().into(), k::VFIO_REGION_INFO_FLAG_CAPS),
        (region::RegionCap::SPARSE_MMAP.0.into(), k::VFIO_REGION_INFO_CAP_SPARSE_MMAP),
        (region::RegionCap::TYPE.0.into(), k::VFIO_REGION_INFO_CAP_TYPE),
        (
            region::RegionCap::MSIX_MAPPABLE.0.into(),
            k::VFIO_REGION_INFO_CAP_MSIX_MAPPABLE,
        ),
        (irq::IrqInfoFlags::EVENTFD.bits().into(), k::VFIO_IRQ_INFO_EVENTFD),
        (irq::IrqInfoFlags::MASKABLE.bits().into(), k::VFIO_IRQ_INFO_MASKABLE),
        (irq::IrqInfoFlags::AUTOMASKED.bits().into(), k::VFIO_IRQ_INFO_AUTOMASKED),
        (irq::IrqInfoFlags::NORESIZE.bits().into(), k::VFIO_IRQ_INFO_NORESIZE),
        (irq::IrqSetFlags::DATA_NONE.bits().into(), k::VFIO_IRQ_SET_DATA_NONE),
        (irq::IrqSetFlags::DATA_BOOL.bits().into(), k::VFIO_IRQ_SET_DATA_BOOL),
        (irq::IrqSetFlags::DATA_EVENTFD.bits().into(), k::VFIO_IRQ_SET_DATA_EVENTFD),
        (irq::IrqSetFlags::ACTION_MASK.bits().into(), k::VFIO_IRQ_SET_ACTION_MASK),
        (irq::IrqSetFlags::ACTION_UNMASK.bits().into(), k::VFIO_IRQ_SET_ACTION_UNMASK),
        (irq::IrqSetFlags::ACTION_TRIGGER.bits().into(), k::VFIO_IRQ_SET_ACTION_TRIGGER),
        (irq::IrqSetFlags::DATA_TYPE_MASK.into(), k::VFIO_IRQ_SET_DATA_TYPE_MASK),
        (irq::IrqSetFlags::ACTION_TYPE_MASK.into(), k::VFIO_IRQ_SET_ACTION_TYPE_MASK),
    ];
    for (number, (ours, theirs)) in flags.into_iter().enumerate() {
        assert_eq!(ours, u64::from(theirs), "line {number}");
    }
}

#[test]
fn no_feature_is_taken_for_another() {
    use feature::Feature;
    let features = [
        (Feature::PCI_VF_TOKEN, k::VFIO_DEVICE_FEATURE_PCI_VF_TOKEN),
        (Feature::MIGRATION, k::VFIO_DEVICE_FEATURE_MIGRATION),
        (Feature::MIG_DEVICE_STATE, k::VFIO_DEVICE_FEATURE_MIG_DEVICE_STATE),
        (Feature::LOW_POWER_ENTRY, k::VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY),
        (
            Feature::LOW_POWER_ENTRY_WITH_WAKEUP,
            k::VFIO_DEVICE_FEATURE_LOW_POWER_ENTRY_WITH_WAKEUP,
        ),
        (Feature::LOW_POWER_EXIT, k::VFIO_DEVICE_FEATURE_LOW_POWER_EXIT),
        (Feature::DMA_LOGGING_START, k::VFIO_DEVICE_FEATURE_DMA_LOGGING_START),
        (Feature::DMA_LOGGING_STOP, k::VFIO_DEVICE_FEATURE_DMA_LOGGING_STOP),
        (Feature::DMA_LOGGING_REPORT, k::VFIO_DEVICE_FEATURE_DMA_LOGGING_REPORT),
        (Feature::MIG_DATA_SIZE, k::VFIO_DEVICE_FEATURE_MIG_DATA_SIZE),
        (Feature::BUS_MASTER, k::VFIO_DEVICE_FEATURE_BUS_MASTER),
        (Feature::DMA_BUF, k::VFIO_DEVICE_FEATURE_DMA_BUF),
        (Feature::MIG_PRECOPY_INFO_V2, k::VFIO_DEVICE_FEATURE_MIG_PRECOPY_INFOv2),
    ];
    for (ours, theirs) in features {
        assert_eq!(u32::from(ours.0), theirs, "{ours}");
    }
    // The RFC's numbers are low power now: sending START would put a device to sleep.
    assert_eq!(Feature(dma_logging::rfc::START), Feature::LOW_POWER_ENTRY);
    assert_eq!(Feature(dma_logging::rfc::STOP), Feature::LOW_POWER_ENTRY_WITH_WAKEUP);
    assert_eq!(Feature(dma_logging::rfc::REPORT), Feature::LOW_POWER_EXIT);
    let header = feature::FeatureHeader::new(
        Feature::MIG_DEVICE_STATE,
        feature::FeatureFlags::GET | feature::FeatureFlags::PROBE,
        8,
    );
    assert_eq!((header.argsz, header.flags), (16, 0x5_0002));
    assert_eq!(header.feature(), Feature::MIG_DEVICE_STATE);
    let strange = feature::FeatureHeader { argsz: 8, flags: 0x8008_0007 };
    assert_eq!(strange.feature(), Feature::DMA_LOGGING_STOP);
    assert_eq!(strange.operation().bits(), 0x8008_0000, "unknown bits stay visible");
}

#[test]
fn ioctls_and_indexes_are_the_kernels() {
    let io = |number: u32| u32::from(b';') << 8 | (100 + number);
    assert_eq!((k::VFIO_TYPE, k::VFIO_BASE), (b';', 100));
    assert_eq!(device_info::DEVICE_GET_INFO, io(7));
    assert_eq!(region::DEVICE_GET_REGION_INFO, io(8));
    assert_eq!(irq::DEVICE_GET_IRQ_INFO, io(9));
    assert_eq!(irq::DEVICE_SET_IRQS, io(10));
    assert_eq!(device_info::DEVICE_RESET, io(11));
    assert_eq!(feature::DEVICE_FEATURE, io(17));
    assert_eq!(v2::MIG_GET_PRECOPY_INFO, io(21));
    assert_eq!(group::GET_API_VERSION, io(0));
    assert_eq!(group::CHECK_EXTENSION, io(1));
    assert_eq!(group::SET_IOMMU, io(2));
    assert_eq!(group::GROUP_GET_STATUS, io(3));
    assert_eq!(group::GROUP_SET_CONTAINER, io(4));
    assert_eq!(group::GROUP_UNSET_CONTAINER, io(5));
    assert_eq!(group::GROUP_GET_DEVICE_FD, io(6));
    assert_eq!(iommufd::DEVICE_BIND_IOMMUFD, io(18));
    assert_eq!(iommufd::DEVICE_ATTACH_IOMMUFD_PT, io(19));
    assert_eq!(iommufd::DEVICE_DETACH_IOMMUFD_PT, io(20));
    let iommu = |command: u32| u32::from(b';') << 8 | command;
    assert_eq!(iommufd::DESTROY, iommu(i::IOMMUFD_CMD_DESTROY));
    assert_eq!(iommufd::IOAS_ALLOC, iommu(i::IOMMUFD_CMD_IOAS_ALLOC));
    assert_eq!(iommufd::IOAS_MAP, iommu(i::IOMMUFD_CMD_IOAS_MAP));
    assert_eq!(iommufd::IOAS_UNMAP, iommu(i::IOMMUFD_CMD_IOAS_UNMAP));
    assert_eq!(iommufd::OPTION, iommu(i::IOMMUFD_CMD_OPTION));
    let huge = i::iommufd_option_IOMMU_OPTION_HUGE_PAGES;
    assert_eq!(iommufd::IommuOption::HUGE_PAGES, huge);
    let set = i::iommufd_option_ops_IOMMU_OPTION_OP_SET;
    assert_eq!(u32::from(iommufd::IommuOption::SET), set);
    assert_eq!(iommufd::HWPT_ALLOC, iommu(i::IOMMUFD_CMD_HWPT_ALLOC));
    assert_eq!(iommufd::GET_HW_INFO, iommu(i::IOMMUFD_CMD_GET_HW_INFO));
    let (set, get) = (iommufd::HWPT_SET_DIRTY_TRACKING, iommufd::HWPT_GET_DIRTY_BITMAP);
    assert_eq!(set, iommu(i::IOMMUFD_CMD_HWPT_SET_DIRTY_TRACKING));
    assert_eq!(get, iommu(i::IOMMUFD_CMD_HWPT_GET_DIRTY_BITMAP));
    assert_eq!(pci::region_index::BAR5, k::VFIO_PCI_BAR5_REGION_INDEX);
    assert_eq!(pci::region_index::ROM, k::VFIO_PCI_ROM_REGION_INDEX);
    assert_eq!(pci::region_index::CONFIG, k::VFIO_PCI_CONFIG_REGION_INDEX);
    assert_eq!(pci::region_index::VGA, k::VFIO_PCI_VGA_REGION_INDEX);
    assert_eq!(pci::region_index::NUM, k::VFIO_PCI_NUM_REGIONS);
    assert_eq!(pci::irq_index::INTX, k::VFIO_PCI_INTX_IRQ_INDEX);
    assert_eq!(pci::irq_index::MSI, k::VFIO_PCI_MSI_IRQ_INDEX);
    assert_eq!(pci::irq_index::MSIX, k::VFIO_PCI_MSIX_IRQ_INDEX);
    assert_eq!(pci::irq_index::ERR, k::VFIO_PCI_ERR_IRQ_INDEX);
    assert_eq!(pci::irq_index::REQ, k::VFIO_PCI_REQ_IRQ_INDEX);
    assert_eq!(pci::irq_index::NUM, k::VFIO_PCI_NUM_IRQS);
}

#[test]
fn no_number_of_a_way_to_a_device_differs_from_the_header() {
    use group::{Extension, GroupFlags};
    use iommufd::{
        GetDirtyBitmapFlags, HwCapabilities, HwptAllocFlags, IoasMapFlags,
        SetDirtyTrackingFlags,
    };
    let capabilities = u64::from(i::iommufd_hw_capabilities_IOMMU_HW_CAP_DIRTY_TRACKING);
    assert_eq!(HwCapabilities::DIRTY_TRACKING.bits(), capabilities);
    for (ours, theirs) in [
        (group::API_VERSION.unsigned_abs(), k::VFIO_API_VERSION),
        (Extension::TYPE1_IOMMU.0, k::VFIO_TYPE1_IOMMU),
        (Extension::TYPE1V2_IOMMU.0, k::VFIO_TYPE1v2_IOMMU),
        (Extension::NOIOMMU_IOMMU.0, k::VFIO_NOIOMMU_IOMMU),
        (Extension::UNMAP_ALL.0, k::VFIO_UNMAP_ALL),
        (Extension::UPDATE_VADDR.0, k::VFIO_UPDATE_VADDR),
        (GroupFlags::VIABLE.bits(), k::VFIO_GROUP_FLAGS_VIABLE),
        (GroupFlags::CONTAINER_SET.bits(), k::VFIO_GROUP_FLAGS_CONTAINER_SET),
        (
            IoasMapFlags::FIXED_IOVA.bits(),
            i::iommufd_ioas_map_flags_IOMMU_IOAS_MAP_FIXED_IOVA,
        ),
        (
            IoasMapFlags::WRITEABLE.bits(),
            i::iommufd_ioas_map_flags_IOMMU_IOAS_MAP_WRITEABLE,
        ),
        (
            IoasMapFlags::READABLE.bits(),
            i::iommufd_ioas_map_flags_IOMMU_IOAS_MAP_READABLE,
        ),
        (
            HwptAllocFlags::DIRTY_TRACKING.bits(),
            i::iommufd_hwpt_alloc_flags_IOMMU_HWPT_ALLOC_DIRTY_TRACKING,
        ),
        (
            SetDirtyTrackingFlags::ENABLE.bits(),
            i::iommufd_hwpt_set_dirty_tracking_flags_IOMMU_HWPT_DIRTY_TRACKING_ENABLE,
        ),
        (
            GetDirtyBitmapFlags::NO_CLEAR.bits(),
            i::iommufd_hwpt_get_dirty_bitmap_flags_IOMMU_HWPT_GET_DIRTY_BITMAP_NO_CLEAR,
        ),
    ] {
        assert_eq!(ours, theirs);
    }
}

#[test]
fn numbers_without_a_name_stay_what_they_are() {
    assert_eq!(Errno::EINVAL.to_string(), "EINVAL");
    assert_eq!(Errno(22).name(), Some("EINVAL"));
    assert_eq!(Errno(4242).name(), None);
    assert_eq!(Errno(4242).to_string(), "errno 4242");
    assert_eq!(v2::DeviceState(9).to_string(), "state 9");
    assert_eq!(vfio_user::Command(99).to_string(), "command 99");
    let flags = v2::MigrationFlags::from_bits_retain(1 << 40 | 1);
    assert_eq!(flags.bits(), 1 << 40 | 1);
    let commands: Vec<u16> = vfio_user::Command::NAMED.iter().map(|c| c.0).collect();
    assert_eq!(commands, (1..=18).collect::<Vec<u16>>());
}

/// The standard library knows some of the numbers too.
#[test]
fn errnos_are_the_systems() {
    use std::io::{Error, ErrorKind};
    for (errno, kind) in [
        (Errno::EPERM, ErrorKind::PermissionDenied),
        (Errno::ENOENT, ErrorKind::NotFound),
        (Errno::EINTR, ErrorKind::Interrupted),
        (Errno::E2BIG, ErrorKind::ArgumentListTooLong),
        (Errno::EAGAIN, ErrorKind::WouldBlock),
        (Errno::ENOMEM, ErrorKind::OutOfMemory),
        (Errno::EACCES, ErrorKind::PermissionDenied),
        (Errno::EBUSY, ErrorKind::ResourceBusy),
        (Errno::EEXIST, ErrorKind::AlreadyExists),
        (Errno::EINVAL, ErrorKind::InvalidInput),
        (Errno::EFBIG, ErrorKind::FileTooLarge),
        (Errno::ENOSPC, ErrorKind::StorageFull),
        (Errno::ESPIPE, ErrorKind::NotSeekable),
        (Errno::EPIPE, ErrorKind::BrokenPipe),
        (Errno::ENOSYS, ErrorKind::Unsupported),
        (Errno::EOPNOTSUPP, ErrorKind::Unsupported),
        (Errno::ECONNRESET, ErrorKind::ConnectionReset),
        (Errno::ENOTCONN, ErrorKind::NotConnected),
        (Errno::ETIMEDOUT, ErrorKind::TimedOut),
        (Errno::ECONNREFUSED, ErrorKind::ConnectionRefused),
    ] {
        assert_eq!(Error::from_raw_os_error(errno.0).kind(), kind, "{errno}");
    }
}

#[test]
fn no_number_of_v1_or_type1_differs_from_the_header() {
    use v1::StateBits;
    let io = |number: u32| u32::from(b';') << 8 | (100 + number);
    for (ours, theirs) in [
        (v1::V1_REGION_TYPE, k::VFIO_REGION_TYPE_MIGRATION_DEPRECATED),
        (v1::V1_REGION_SUBTYPE, k::VFIO_REGION_SUBTYPE_MIGRATION_DEPRECATED),
        (StateBits::STOPPED.bits(), k::VFIO_DEVICE_STATE_V1_STOP),
        (StateBits::RUNNING.bits(), k::VFIO_DEVICE_STATE_V1_RUNNING),
        (StateBits::SAVING.bits(), k::VFIO_DEVICE_STATE_V1_SAVING),
        (StateBits::RESUMING.bits(), k::VFIO_DEVICE_STATE_V1_RESUMING),
        (type1::Type1InfoFlags::PGSIZES.bits(), k::VFIO_IOMMU_INFO_PGSIZES),
        (type1::Type1InfoFlags::CAPS.bits(), k::VFIO_IOMMU_INFO_CAPS),
        (type1::Type1Cap::IOVA_RANGE.0.into(), k::VFIO_IOMMU_TYPE1_INFO_CAP_IOVA_RANGE),
        (type1::Type1Cap::MIGRATION.0.into(), k::VFIO_IOMMU_TYPE1_INFO_CAP_MIGRATION),
        (type1::Type1Cap::DMA_AVAIL.0.into(), k::VFIO_IOMMU_TYPE1_INFO_DMA_AVAIL),
        (type1::DmaMapFlags::READ.bits(), k::VFIO_DMA_MAP_FLAG_READ),
        (type1::DmaMapFlags::WRITE.bits(), k::VFIO_DMA_MAP_FLAG_WRITE),
        (type1::DmaMapFlags::VADDR.bits(), k::VFIO_DMA_MAP_FLAG_VADDR),
        (
            type1::DmaUnmapFlags::GET_DIRTY_BITMAP.bits(),
            k::VFIO_DMA_UNMAP_FLAG_GET_DIRTY_BITMAP,
        ),
        (type1::DmaUnmapFlags::ALL.bits(), k::VFIO_DMA_UNMAP_FLAG_ALL),
        (type1::DmaUnmapFlags::VADDR.bits(), k::VFIO_DMA_UNMAP_FLAG_VADDR),
        (type1::DirtyPagesFlags::START.bits(), k::VFIO_IOMMU_DIRTY_PAGES_FLAG_START),
        (type1::DirtyPagesFlags::STOP.bits(), k::VFIO_IOMMU_DIRTY_PAGES_FLAG_STOP),
        (
            type1::DirtyPagesFlags::GET_BITMAP.bits(),
            k::VFIO_IOMMU_DIRTY_PAGES_FLAG_GET_BITMAP,
        ),
        (type1::IOMMU_GET_INFO, io(12)),
        (type1::IOMMU_MAP_DMA, io(13)),
        (type1::IOMMU_UNMAP_DMA, io(14)),
        (type1::IOMMU_DIRTY_PAGES, io(17)),
    ] {
        assert_eq!(ours, theirs);
    }
    // The draft's number is taken: who looked for it would read ranges as flags.
    assert_eq!(
        type1::Type1Cap(v1::type1_draft::INFO_CAP_MIGRATION),
        type1::Type1Cap::IOVA_RANGE
    );
    let released = type1::Type1InfoFlags::all().bits()
        & (type1::Type1InfoFlags::PGSIZES | type1::Type1InfoFlags::CAPS).bits();
    assert_eq!(released & v1::type1_draft::INFO_DIRTY_PGS, 0);
}
