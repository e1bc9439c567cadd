package dhcp

// Arch is a client system architecture type (option 93; RFC 4578 §2.1, IANA
// registry "Processor Architecture Types"). The table is our own, because the
// library's ends before the numbers that are in use.
type Arch uint16

// The types that decide something here.
const (
	ArchBIOS    Arch = 0
	ArchEFIX64  Arch = 7
	ArchEFIBC   Arch = 9 // EBC by the registry; x64 firmware sends it since RFC 4578 and IANA swapped 7 and 9
	ArchX64HTTP Arch = 16
)

// archNames are all types that are known; only some of them can run the image.
var archNames = map[Arch]string{
	0: "bios", 6: "efi-ia32", 7: "efi-x64", 9: "efi-bc", 10: "efi-arm32", 11: "efi-arm64",
	15: "efi-ia32-http", 16: "efi-x64-http", 18: "efi-arm32-http", 19: "efi-arm64-http", 20: "bios-http",
	27: "efi-riscv64", 28: "efi-riscv64-http", 41: "raspberry-pi",
}

func (a Arch) String() string {
	if name, ok := archNames[a]; ok {
		return name
	}
	return "unknown"
}

// firstKnown returns the first type of an option 93 that is in the table: some
// clients list several.
func firstKnown(option []byte) (Arch, bool) {
	for ; len(option) >= 2; option = option[2:] {
		a := Arch(option[0])<<8 | Arch(option[1])
		if _, ok := archNames[a]; ok {
			return a, true
		}
	}
	return 0, false
}
