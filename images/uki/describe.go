package uki

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"

	"portcullis/images/manifest"
)

// What .sdmagic of a systemd stub holds around its version.
const (
	magicHead = "#### LoaderInfo: systemd-stub "
	magicTail = " ####"
)

// StubVersion returns the version of the systemd stub that image is or was
// built from, such as "257.13-1~deb13u1".
func StubVersion(image []byte) (string, error) {
	f, err := Parse(image)
	if err != nil {
		return "", err
	}
	magic, _ := f.Section(".sdmagic")
	version, ok := strings.CutPrefix(strings.TrimRight(string(magic), "\x00"), magicHead)
	if version, ok2 := strings.CutSuffix(version, magicTail); ok && ok2 && version != "" {
		return version, nil
	}
	return "", fmt.Errorf("uki: no systemd stub: section .sdmagic is missing or unknown")
}

// KernelVersion returns the release (uname -r) of an x86 bzImage, from the
// setup header's kernel_version (Documentation/arch/x86/boot.rst).
func KernelVersion(kernel []byte) (string, error) {
	const magicAt, pointerAt, base = 0x202, 0x20e, 0x200
	if len(kernel) < 0x264 || string(kernel[magicAt:magicAt+4]) != "HdrS" {
		return "", fmt.Errorf("uki: the kernel is not a bzImage")
	}
	at := base + int(binary.LittleEndian.Uint16(kernel[pointerAt:]))
	if at >= len(kernel) {
		return "", fmt.Errorf("uki: the kernel's version string lies outside it")
	}
	text := kernel[at:min(at+256, len(kernel))]
	if i := bytes.IndexAny(text, " \x00"); i > 0 {
		return string(text[:i]), nil
	}
	return "", fmt.Errorf("uki: the kernel has no version string")
}

// Describe returns what the manifest says about a UKI. Sections are those
// that the stub measures, in its order; its own code and data are covered by
// the Authenticode digest.
func Describe(image []byte) (manifest.UKIInfo, error) {
	f, err := Parse(image)
	if err != nil {
		return manifest.UKIInfo{}, err
	}
	var info manifest.UKIInfo
	if info.StubVersion, err = StubVersion(image); err != nil {
		return manifest.UKIInfo{}, err
	}
	kernel, ok := f.Section(Linux)
	if !ok {
		return manifest.UKIInfo{}, fmt.Errorf("uki: no section %s", Linux)
	}
	if info.KernelVersion, err = KernelVersion(kernel); err != nil {
		return manifest.UKIInfo{}, err
	}
	if info.Authenticode, err = digest(image); err != nil {
		return manifest.UKIInfo{}, err
	}
	if info.LinuxAuthenticode, err = digest(kernel); err != nil {
		return manifest.UKIInfo{}, fmt.Errorf("section %s: %w", Linux, err)
	}
	sections, err := f.Measured()
	if err != nil {
		return manifest.UKIInfo{}, err
	}
	for _, s := range sections {
		sum := sha256.Sum256(s.Data)
		info.Sections = append(info.Sections, manifest.Section{Name: s.Name, Size: int64(len(s.Data)), SHA256: hex.EncodeToString(sum[:])})
	}
	return info, nil
}

func digest(image []byte) (string, error) {
	sum, err := Authenticode(image)
	return hex.EncodeToString(sum[:]), err
}

// measureOrder is the order in which the stub extends sections into PCR 11
// (systemd 257, src/fundamental/uki.h, and every version since 252 for these
// sections); it is not the order of the file.
var measureOrder = []string{Linux, OSRelease, Cmdline, Initrd, Uname, ".sbat"}

// stubOnly are sections that the stub acts upon and Build never makes: with one
// of them the boot measures something that is not predicted here.
var stubOnly = []string{".ucode", ".splash", ".dtb", ".pcrsig", ".pcrpkey", ".profile", ".dtbauto", ".hwids"}

// Measured returns the sections that the stub measures into PCR 11, in its
// order. It refuses an image whose measurements would depend on more than
// these bytes.
func (f *File) Measured() ([]Section, error) {
	count := map[string]int{}
	for _, h := range f.sections {
		count[h.name]++
		if slices.Contains(measureOrder, h.name) && h.virtualSize > h.rawSize {
			return nil, fmt.Errorf("uki: section %s is longer in memory than in the file", h.name)
		}
	}
	for _, name := range stubOnly {
		if count[name] > 0 {
			return nil, fmt.Errorf("uki: what the stub does with section %s is not predicted", name)
		}
	}
	var out []Section
	for _, name := range measureOrder {
		if count[name] > 1 {
			return nil, fmt.Errorf("uki: section %s is there %d times", name, count[name])
		}
		if data, ok := f.Section(name); ok {
			out = append(out, Section{Name: name, Data: data})
		}
	}
	return out, nil
}
