package card

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"sort"
	"strings"
	"sync"
)

// TPM registers of platform "self", where no firmware measures and pi-init does it
// (SHA-256 bank; every active bank is extended with the digest of the same bytes).
const (
	PCRBoot      = 8  // BootDigest
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

// BootDigest is what pi-init extends into PCRBoot. Where there is a boot.img it is
// the SHA-256 of that file, which is also what a Pi 5's bootloader reports as
// boot_img_sha256; otherwise the SHA-256 of a listing of every file but the policy,
// sorted by path: "<sha256 hex> <size> <path>\n".
func BootDigest(files map[string][]byte) [32]byte {
	if img, ok := files[BootImgFile]; ok {
		return sha256.Sum256(img)
	}
	names := make([]string, 0, len(files))
	for n := range files {
		if n != PolicyFile {
			names = append(names, n)
		}
	}
	sort.Strings(names)
	sums := make([][32]byte, len(names))
	var wg sync.WaitGroup
	for i, n := range names { // side by side: pi-init waits for it in every boot
		wg.Go(func() { sums[i] = sha256.Sum256(files[n]) })
	}
	wg.Wait()
	h := sha256.New()
	for i, n := range names {
		fmt.Fprintf(h, "%x %d %s\n", sums[i], len(files[n]), n)
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
