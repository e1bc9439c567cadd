package card

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// TPM registers of platform "self", where no firmware measures and pi-init does it
// (SHA-256 bank; every active bank is extended with the digest of the same bytes).
const (
	PCRBoot      = 8  // MeasuredDigest
	PCRCmdline   = 9  // SHA-256 of Cmdline
	PCRPhase     = 11 // PhaseEnter, later PhaseLeave
	PCRVolumeKey = 15 // HMAC of the volume key, as systemd-cryptsetup does
)

// Phases extended into PCRPhase: the first before unsealing, the second as the cap
// after it. The words are those of systemd's pcrphase, so that event logs read alike.
const (
	PhaseEnter = "enter-initrd"
	PhaseLeave = "leave-initrd"
)

// BootFile is a file of a boot partition by its digest.
type BootFile struct {
	Path   string
	Size   int64
	SHA256 [32]byte
}

// Measured picks the files of a boot partition, by their paths, that MeasuredDigest
// depends on: those that the Pi's own firmware starts from. What UEFI starts lies in
// a directory of its own, and UEFI measures it.
func Measured(paths []string) []string {
	return slices.DeleteFunc(listed(paths), func(p string) bool { return strings.HasPrefix(p, uefiDir) })
}

// listed picks the files that BootDigest depends on.
func listed(paths []string) []string {
	if slices.Contains(paths, BootImgFile) {
		return []string{BootImgFile}
	}
	return slices.DeleteFunc(slices.Clone(paths), func(p string) bool { return p == PolicyFile })
}

// BootDigest is what a release's manifest says of its boot partition. Where there is a
// boot.img it is the SHA-256 of that file, which is also what a Pi 5's bootloader
// reports as boot_img_sha256; otherwise the SHA-256 of a listing of every file but the
// policy, sorted by path: "<sha256 hex> <size> <path>\n".
func BootDigest(files map[string][]byte) [32]byte { return digestOf(files, listed) }

// MeasuredDigest is what pi-init extends into PCRBoot: the same of the Measured files.
func MeasuredDigest(files map[string][]byte) [32]byte { return digestOf(files, Measured) }

func digestOf(files map[string][]byte, pick func([]string) []string) [32]byte {
	var list []BootFile
	for _, n := range pick(slices.Collect(maps.Keys(files))) {
		list = append(list, BootFile{n, int64(len(files[n])), sha256.Sum256(files[n])})
	}
	return BootDigestOf(list)
}

// BootDigestOf is the digest of files that were picked, in any order.
func BootDigestOf(list []BootFile) [32]byte {
	if len(list) == 1 && list[0].Path == BootImgFile {
		return list[0].SHA256
	}
	h := sha256.New()
	for _, f := range slices.SortedFunc(slices.Values(list), func(a, b BootFile) int { return strings.Compare(a.Path, b.Path) }) {
		fmt.Fprintf(h, "%x %d %s\n", f.SHA256, f.Size, f.Path)
	}
	return [32]byte(h.Sum(nil))
}

// CmdlineMark is the first word of our own part of the kernel command line. The
// Pi's firmware puts words of its own before the content of cmdline.txt.
const CmdlineMark = "portcullis.pi=1"

// ReleaseWord is the word of the command line that names the release.
func ReleaseWord(sequence uint64) string { return fmt.Sprintf("portcullis.release=%d", sequence) }

// firmwareWords are the keys that the Pi's firmware is known to put in front.
// None of them changes what runs. Others are refused.
var firmwareWords = []string{
	"8250.nr_uarts", "bcm2708_fb.", "bcm2709.", "cma", "coherent_pool", "dma.dmachans", "numa", "numa_policy",
	"pci", "pcie_aspm", "smsc95xx.macaddr", "snd_bcm2835.", "system_heap.max_order", "vc_mem.", "video",
}

// ErrCmdline: the command line is not ours with the firmware's words in front.
var ErrCmdline = errors.New("kernel command line is not the image's")

// Cmdline returns our own part of /proc/cmdline: from CmdlineMark to the end.
func Cmdline(proc string) (string, error) {
	words := strings.Fields(proc)
	for i, w := range words {
		if w == CmdlineMark {
			own := strings.Join(words[i:], " ")
			if strings.Count(own, CmdlineMark) != 1 {
				return "", fmt.Errorf("%w: %s stands there twice", ErrCmdline, CmdlineMark)
			}
			return own, nil
		}
		if !fromFirmware(w) {
			return "", fmt.Errorf("%w: %q stands before it", ErrCmdline, w)
		}
	}
	return "", fmt.Errorf("%w: no %s", ErrCmdline, CmdlineMark)
}

func fromFirmware(word string) bool {
	key, _, _ := strings.Cut(word, "=")
	for _, f := range firmwareWords {
		if key == f || strings.HasSuffix(f, ".") && strings.HasPrefix(key, f) {
			return true
		}
	}
	return false
}
