//! Debian's kernel, unpacked. QEMU reads a packed kernel into memory of its own, 14 MiB in every VM, and the guest unpacks it
//! under emulation; an unpacked one it only maps, the same pages for all VMs, and starts directly (by the PVH entry that
//! kernels for virtual machines have).

use lz4_flex::block::decompress_into;

/// The boot protocol's header (Linux, Documentation/arch/x86/boot.rst): sectors of the real-mode part, the signature, where
/// the packed kernel begins after that part, and its length.
const SETUP_SECTORS: usize = 0x1f1;
const SIGNATURE: (usize, &[u8]) = (0x202, b"HdrS");
const PAYLOAD_OFFSET: usize = 0x248;
const PAYLOAD_LENGTH: usize = 0x24c;
const SECTOR: usize = 512;
/// What 0 sectors mean.
const DEFAULT_SECTORS: usize = 4;
/// LZ4 as `lz4 -l` writes it, which is what Debian's cloud kernels are packed with: blocks of this size when unpacked.
const LZ4_LEGACY: [u8; 4] = 0x184c_2102_u32.to_le_bytes();
const LZ4_BLOCK: usize = 8 * 1024 * 1024;
const ELF: &[u8] = b"\x7fELF";
/// A note of the owner `Xen` of the type 18: the entry for PVH. Between name and type lies the length of the address.
const PVH_NOTES: [&[u8]; 2] = [
    b"\x04\0\0\0\x08\0\0\0\x12\0\0\0Xen\0",
    b"\x04\0\0\0\x04\0\0\0\x12\0\0\0Xen\0",
];

/// The kernel as QEMU can start it unpacked. `None` when it is packed in another way or cannot be started so; the packed one
/// then does as well.
pub(super) fn unpack(packed: &[u8]) -> Option<Vec<u8>> {
    let number = |at: usize| {
        let bytes = packed.get(at..at + 4)?;
        usize::try_from(u32::from_le_bytes(bytes.try_into().ok()?)).ok()
    };
    let (at, signature) = SIGNATURE;
    if packed.get(at..at + signature.len()) != Some(signature) {
        return None;
    }
    let sectors = match usize::from(*packed.get(SETUP_SECTORS)?) {
        0 => DEFAULT_SECTORS,
        sectors => sectors,
    };
    let begin = (sectors + 1) * SECTOR + number(PAYLOAD_OFFSET)?;
    let payload = packed.get(begin..begin.checked_add(number(PAYLOAD_LENGTH)?)?)?;
    let kernel = unpack_lz4(payload)?;
    let has_entry = PVH_NOTES
        .iter()
        .any(|note| kernel.windows(note.len()).any(|window| window == *note));
    (kernel.starts_with(ELF) && has_entry).then_some(kernel)
}

fn unpack_lz4(packed: &[u8]) -> Option<Vec<u8>> {
    let mut rest = packed.strip_prefix(&LZ4_LEGACY)?;
    let mut kernel = Vec::new();
    let mut block = vec![0; LZ4_BLOCK];
    // After the last block the build has put the unpacked size: four bytes, and no block of that length follows.
    while let Some((length, after)) = rest.split_first_chunk::<4>() {
        let length = usize::try_from(u32::from_le_bytes(*length)).ok()?;
        let Some((bytes, next)) = after.split_at_checked(length) else {
            break;
        };
        let unpacked = decompress_into(bytes, &mut block).ok()?;
        kernel.extend_from_slice(&block[..unpacked]);
        rest = next;
    }
    Some(kernel)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packed(kernel: &[u8]) -> Vec<u8> {
        let mut payload = LZ4_LEGACY.to_vec();
        for chunk in kernel.chunks(LZ4_BLOCK) {
            let block = lz4_flex::block::compress(chunk);
            payload.extend(u32::try_from(block.len()).unwrap().to_le_bytes());
            payload.extend(block);
        }
        payload.extend(u32::try_from(kernel.len()).unwrap().to_le_bytes());
        let mut image = vec![0; 6 * SECTOR];
        image[SETUP_SECTORS] = 4;
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[PAYLOAD_OFFSET..PAYLOAD_OFFSET + 4].copy_from_slice(&512_u32.to_le_bytes());
        let length = u32::try_from(payload.len()).unwrap();
        image[PAYLOAD_LENGTH..PAYLOAD_LENGTH + 4].copy_from_slice(&length.to_le_bytes());
        image.extend(payload);
        image
    }

    #[test]
    fn a_packed_kernel_is_unpacked_when_it_can_be_started_so() {
        let mut kernel = ELF.to_vec();
        kernel.extend(vec![7; LZ4_BLOCK]);
        kernel.extend(PVH_NOTES[0]);
        kernel.extend(b"end");
        assert_eq!(unpack(&packed(&kernel)), Some(kernel.clone()));
        // Without the entry, cut short, or not a kernel at all.
        assert_eq!(unpack(&packed(&kernel[..LZ4_BLOCK])), None);
        assert_eq!(unpack(&packed(&kernel)[..5000]), None);
        assert_eq!(unpack(b"kernel"), None);
        assert_eq!(unpack(&vec![0xff; 100_000]), None);
    }
}
