package protocol

// Kinds of eBPF objects.
const (
	BPFProgram = "program"
	BPFLink    = "link"
	BPFMap     = "map"
)

// BPFObject is one eBPF object that the kernel holds (bpf(2)).
type BPFObject struct {
	Kind    string `json:"kind"` // program, link or map
	ID      uint32 `json:"id"`
	Type    uint32 `json:"type"`    // enum bpf_prog_type, bpf_link_type or bpf_map_type
	Name    string `json:"name"`    // of a program or map, as its loader called it; may be empty
	Tag     string `json:"tag"`     // of a program: hex of the kernel's digest of its instructions
	Program uint32 `json:"program"` // of a link: the program it attaches
}

// Keyring is one of the kernel's keyrings of trusted keys.
type Keyring struct {
	Name string   `json:"name"` // with its dot
	Keys []string `json:"keys"` // "type;description" of each, sorted
}

// TraceData is the answer of op trace: by what the kernel's behaviour can be
// changed without changing its code.
type TraceData struct {
	Tainted  uint64      `json:"tainted"` // /proc/sys/kernel/tainted
	Objects  []BPFObject `json:"objects"` // sorted by kind and id
	Keyrings []Keyring   `json:"keyrings"`
}

// Limits of TraceData.
const (
	MaxBPFObjects = 8192
	MaxKeyrings   = 16
	MaxKeys       = 256 // of one keyring
)

// Check bounds the lists and strings.
func (d *TraceData) Check() error {
	if err := atMost("eBPF objects", len(d.Objects), MaxBPFObjects); err != nil {
		return err
	}
	if err := atMost("keyrings", len(d.Keyrings), MaxKeyrings); err != nil {
		return err
	}
	for _, o := range d.Objects {
		if err := short("eBPF object", o.Kind, o.Name, o.Tag); err != nil {
			return err
		}
	}
	for _, k := range d.Keyrings {
		if err := atMost("keys", len(k.Keys), MaxKeys); err != nil {
			return err
		}
		if err := short("keyring", append(k.Keys, k.Name)...); err != nil {
			return err
		}
	}
	return nil
}
