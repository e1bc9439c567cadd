// Package pcr predicts the values of the PC's TPM registers 9, 11 and 12 (SHA-256
// bank) after the boot of a UKI: loaded by UEFI firmware itself, without load
// options, with systemd-stub 257 and a kernel that measures as Linux 6.12 does.
// The image builder, the checks of images and the judgement of quotes call it.
//
//	register  extended by  with
//	9         kernel       the command line in UTF-16, then the initrd as the stub hands it over
//	11        stub         name and content of each section, in the order of uki.Measured
//	12        stub         nothing, unless somebody adds to the command line
package pcr

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"

	"portcullis/images/uki"
)

// Value is the content of a register in the SHA-256 bank; the zero value is
// that of registers 0 to 15 after reset.
type Value [sha256.Size]byte

// Extend returns v after the TPM has extended it with digest
// (TCG TPM 2.0 Part 1, 11.4.7: new = H(old ‖ digest)).
func (v Value) Extend(digest [sha256.Size]byte) Value {
	return sha256.Sum256(append(v[:], digest[:]...))
}

// Measure is Extend with the digest of data.
func (v Value) Measure(data []byte) Value { return v.Extend(sha256.Sum256(data)) }

func (v Value) String() string { return hex.EncodeToString(v[:]) }

// Prediction holds the three registers.
type Prediction struct {
	PCR9, PCR11, PCR12 Value
}

// Map returns the registers as the manifest has them.
func (p Prediction) Map() map[string]string {
	return map[string]string{"9": p.PCR9.String(), "11": p.PCR11.String(), "12": p.PCR12.String()}
}

// Predict computes the registers from the bytes of a UKI.
func Predict(image []byte) (Prediction, error) {
	f, err := uki.Parse(image)
	if err != nil {
		return Prediction{}, err
	}
	version, err := uki.StubVersion(image)
	if err != nil {
		return Prediction{}, err
	}
	// Other stubs hand over another initrd: 252 makes no os-release archive, 258 measures more.
	if major, _, _ := strings.Cut(version, "."); major != "257" {
		return Prediction{}, fmt.Errorf("pcr: systemd-stub %s is not predicted, only 257 is", version)
	}
	sections, err := f.Measured()
	if err != nil {
		return Prediction{}, err
	}
	var p Prediction
	content := map[string][]byte{}
	for _, s := range sections {
		p.PCR11 = p.PCR11.Measure(append([]byte(s.Name), 0)).Measure(s.Data)
		content[s.Name] = s.Data
	}
	for _, name := range []string{uki.Cmdline, uki.Initrd, uki.OSRelease} {
		if len(content[name]) == 0 {
			return Prediction{}, fmt.Errorf("pcr: the image has no section %s", name)
		}
	}
	// The stub turns such bytes into spaces; images of ours have none.
	for i, c := range content[uki.Cmdline] {
		if c < 0x20 || c > 0x7e {
			return Prediction{}, fmt.Errorf("pcr: byte %d of the command line is not printable ASCII", i)
		}
	}
	p.PCR9 = p.PCR9.Measure(loadOptions(content[uki.Cmdline])).
		Extend(sha256.Sum256(handedInitrd(content[uki.Initrd], content[uki.OSRelease])))
	return p, nil
}

// loadOptions is the command line as the stub gives it to the kernel: without
// spaces at its ends, in UTF-16LE with the final NUL. It is ASCII.
func loadOptions(cmdline []byte) []byte {
	var b []byte
	for _, c := range strings.Trim(string(cmdline), " ") + "\x00" {
		b = append(b, byte(c), 0)
	}
	return b
}

// handedInitrd is the initrd that the kernel gets: that of the image, and behind
// it the archive in which the stub hands over .osrel as /.extra/os-release;
// both padded to 4 bytes (systemd 257, src/boot/stub.c and cpio.c).
func handedInitrd(initrd, osRelease []byte) []byte {
	var b bytes.Buffer
	b.Grow(len(initrd) + len(osRelease) + 1024)
	b.Write(initrd)
	pad4(&b)
	entry(&b, 1, 0o040555, ".extra", nil)
	entry(&b, 2, 0o100444, ".extra/os-release", osRelease)
	// The only number of the stub's archives in upper case is the 0B of the trailer.
	fmt.Fprintf(&b, "070701%032x%08x%048x%s%08x", 0, 1, 0, "0000000B", 0)
	b.WriteString("TRAILER!!!\x00")
	pad4(&b)
	return b.Bytes()
}

// entry writes a newc entry as the stub does: one link, also of directories, and no time.
func entry(b *bytes.Buffer, inode, mode uint32, name string, content []byte) {
	fmt.Fprintf(b, "070701%08x%08x%016x%08x%08x%08x%032x%08x%08x", inode, mode, 0, 1, 0, len(content), 0, len(name)+1, 0)
	b.WriteString(name)
	b.WriteByte(0)
	pad4(b)
	b.Write(content)
	pad4(b)
}

func pad4(b *bytes.Buffer) {
	if rest := b.Len() % 4; rest != 0 {
		b.Write(make([]byte, 4-rest))
	}
}
