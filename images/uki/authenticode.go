package uki

import (
	"crypto/sha256"
	"sort"
)

// Authenticode returns the SHA-256 digest of a PE image that UEFI firmware
// checks signatures against and measures into PCR 4 (Microsoft, "Windows
// Authenticode Portable Executable Signature Format", Calculating the PE image
// hash): everything but the checksum, the directory entry of the certificate
// table and the certificates.
func Authenticode(image []byte) ([32]byte, error) {
	f, err := Parse(image)
	if err != nil {
		return [32]byte{}, err
	}
	h := sha256.New()
	h.Write(image[:f.opt+optCheckSum])
	h.Write(image[f.opt+optCheckSum+4 : f.opt+optSecurity])
	h.Write(image[f.opt+optSecurity+8 : f.sizeOfHeaders])
	inFile := make([]header, 0, len(f.sections))
	for _, s := range f.sections {
		if s.rawSize > 0 {
			inFile = append(inFile, s)
		}
	}
	sort.Slice(inFile, func(i, j int) bool { return inFile[i].rawAt < inFile[j].rawAt })
	hashed := int64(f.sizeOfHeaders)
	for _, s := range inFile {
		h.Write(image[s.rawAt:][:s.rawSize])
		hashed += int64(s.rawSize)
	}
	// Bytes behind the sections. Firmware counts what it has hashed and goes on
	// from there, also where gaps between sections make that point an earlier one.
	if end := int64(len(image)) - int64(f.certSize); hashed < end {
		h.Write(image[hashed:end])
	}
	return [32]byte(h.Sum(nil)), nil
}
