// Package config is the one configuration file of a Pi: strict YAML, a section
// a service. A Config that came out of Load or Parse is valid and complete:
// defaults are filled in and every value has been checked.
package config

import (
	"net/netip"
	"time"
)

// DefaultPath is where the services look for the file.
const DefaultPath = "/etc/portcullis/portcullis.yaml"

// Config is the whole file.
type Config struct {
	PC       string // the one of several PCs that this service serves: ForPC; "" where there is one, and in attestd
	RunDir   string // unix sockets; /run/portcullis
	StateDir string // journals, keys, references; /var/lib/portcullis
	Link     Link
	Gateway  Gateway
	PXE      PXE
	Attest   Attest
	Power    Power
	Verifier Verifier
}

// Link is the cable between the Pi and the PC.
type Link struct {
	Interface string       // the PC's port, for instance eth1
	Address   netip.Prefix // ours on it, for instance 10.77.0.1/24
	PCAddress netip.Addr   // what the PC is leased, inside Address
	PCMAC     string       // aa:bb:cc:dd:ee:ff, the one known PC
}

// Gateway configures gatewayd.
type Gateway struct {
	Uplink      string        // interface to the outside; "" = none, grants reach nothing
	BanAfter    int           // forbidden packets within BanWindow that ban; 1..1000
	BanWindow   time.Duration // 1 s .. 1 h
	BanFor      time.Duration // 1 s .. 24 h
	NFLogGroup  uint16
	AllowedUIDs []int // beside root and gatewayd's own: who may call its socket
}

// PXE configures pxed.
type PXE struct {
	ImageDir      string        // artefacts and manifest of the PC's image
	ReleaseKeys   []string      // base64 Ed25519 public keys
	Threshold     int           // signatures needed, 1..len(ReleaseKeys)
	MinVersion    uint64        // floor beside the highest version accepted so far
	HTTPPort      uint16        // 80
	ClaimWindow   time.Duration // from the last byte served; 120 s
	AllowBIOS     bool          // unmeasured legacy boot, off by default
	AllowLabImage bool          // accept an image with a command channel
	AllowedUIDs   []int
}

// Attest configures attestd.
type Attest struct {
	Port        uint16        // agent channel, TLS 1.3; 7443
	KeyFile     string        // gateway identity (Ed25519, PKCS#8 PEM), made at first start
	MeanGap     time.Duration // between challenges; 5 s (0.5 s .. 10 min)
	MinGap      time.Duration // floor; 0.2 s
	Deadline    time.Duration // of one answer; 10 s
	Rekey       time.Duration // mean time between key exchanges with the agent; 10 min (1 s .. 24 h)
	PolicyFile  string        // "" = the built-in policy
	Webhooks    []Webhook
	Ladder      Ladder
	NoiseMiB    int      // noise kept in the PC's memory; 16 MiB (0 .. 65536)
	Containers  []string // approved container images: sha256 of their configurations, hex
	AskListen   string   // address and port of the home side where anybody may POST /attest; "" = nowhere
	AllowedUIDs []int
	// OperatorKeys may approve a changed fingerprint: base64 Ed25519 public keys,
	// at most 16; none = no approval is accepted.
	OperatorKeys []string
	Fleet        []Member // none: the one PC of Link
}

// Member is one of several PCs, each on a port of its own: usually a VLAN of one interface.
type Member struct {
	Name    string     // small letters, digits, dashes
	Address netip.Addr // ours on its port
	MAC     string     // aa:bb:cc:dd:ee:ff, the one PC that is known there
}

// Webhook is an address that the action webhook tells.
type Webhook struct {
	Name       string // small letters, digits, dashes
	URL        string // https, or http in the operator's own network
	SecretFile string // 32 to 4096 bytes, mode 0600
	CAFile     string // PEM; "" = the system's authorities
}

// Ladder is how the actions reboot and power_off take the PC down.
type Ladder struct {
	Rungs   []string      // agent, relay-reset, relay-power, wake, hook; in this order
	Within  time.Duration // what a rung has to show; 2 min (5 s .. 30 min)
	OffTime time.Duration // off before it is switched on again; 10 s (5 s .. 10 min)
}

// Verifier configures verifierd.
type Verifier struct {
	AllowedUIDs []int     // beside root: who may speak to the guard's Docker socket
	Listen      string    // address and port where other nodes read the log, and find the witness; "" = nowhere
	Witnesses   []Witness // of this Pi's log
	Quorum      int       // of them must have signed before an approval takes effect; 0 = the Pi alone
	WitnessName string    // of this Pi as a witness; "" = it is none
	WitnessLogs []string  // base64 public keys of the logs that it signs for
	Services    []string  // of the Pi, which verifierd runs as containers: pxed, attestd; none = systemd runs them
}

// Power configures the services that have attestd's hands: relay and hook.
type Power struct {
	HookReset   []string      // absolute path and arguments; none = no such hook
	HookOff     []string      //
	HookTimeout time.Duration // 30 s (1 s .. 10 min)
	AllowedUIDs []int         // beside root: attestd's
}
