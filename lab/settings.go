package lab

import (
	"crypto/sha256"
	"fmt"
	"strings"
	"text/template"
	"time"

	"portcullis/lab/wire"
)

// Settings are the values of the Pi's configuration that a scenario may want to
// be other than the lab's.
type Settings struct {
	ImageDir    string
	ReleaseKey  string // base64 Ed25519 public key
	MinVersion  uint64
	ClaimWindow time.Duration
	AllowBIOS   bool
	AllowLab    bool
	BanAfter    int
	BanFor      time.Duration
	MeanGap     time.Duration
	Deadline    time.Duration
	Policy      string // text of the policy; "" = the built-in one. For a Pi in a namespace only
	Ladder      string // rungs of the power ladder, with commas
	Within      time.Duration
	Rekey       time.Duration
	OperatorKey string   // base64 Ed25519 public key: who may approve fingerprints
	Containers  []string // approved images: SHA-256 of their configurations, hex
}

// defaultSettings keeps the product's defaults where a lab can live with them.
// Asking and changing keys are quicker than by default so that a lab shows something.
func defaultSettings() Settings {
	return Settings{
		ClaimWindow: 2 * time.Minute, AllowBIOS: true, AllowLab: true,
		BanAfter: 5, BanFor: 20 * time.Second, MeanGap: 2 * time.Second, Deadline: 10 * time.Second,
		Ladder: "agent", Within: 2 * time.Minute,
		Rekey: 45 * time.Second,
	}
}

var configTemplate = template.Must(template.New("portcullis.yaml").Parse(`run_dir: {{.Run}}
state_dir: {{.State}}
link:
  interface: {{.Port}}
  address: {{.Address}}
  pc_address: {{.PCAddress}}
  pc_mac: "{{.MAC}}"
gateway:
  uplink: {{.Uplink}}
  ban_after: {{.BanAfter}}
  ban_window: 1m
  ban_for: {{.BanFor}}
  nflog_group: 77
  allowed_uids: {{.UIDs}}
pxe:
  image_dir: {{.ImageDir}}
  release_keys:
    - {{.ReleaseKey}}
  threshold: 1
  min_version: {{.MinVersion}}
  http_port: 80
  claim_window: {{.ClaimWindow}}
  allow_bios: {{.AllowBIOS}}
  allow_lab_image: {{.AllowLab}}
  allowed_uids: {{.UIDs}}
attest:
  port: 7443
  key_file: {{.KeyFile}}
  mean_gap: {{.MeanGap}}
  min_gap: 200ms
  deadline: {{.Deadline}}
  rekey: {{.Rekey}}
  containers: [{{range $i, $c := .Containers}}{{if $i}}, {{end}}"{{$c}}"{{end}}]
{{- if .PolicyFile}}
  policy_file: {{.PolicyFile}}
{{- end}}
  power:
    ladder: [{{.Ladder}}]
    within: {{.Within}}
  allowed_uids: {{.UIDs}}
  operator_keys: [{{printf "%q" .OperatorKey}}]
verifier:
  services: []
`))

// values are what differs between a Pi in a namespace and one that is a machine.
type values struct {
	Settings
	Run, State, Port, Address, PCAddress, MAC, Uplink, KeyFile, UIDs, PolicyFile string
}

// configFile renders the configuration of the Pi that is a namespace, for the
// lab at p: everything below p, nobody but root may ask.
func configFile(p place, s Settings, mac, keyFile string) (string, error) {
	policyFile := ""
	if s.Policy != "" {
		policyFile = p.file("policy.yaml")
	}
	return render(values{s, p.run(), p.file("state"), wire.PCPort, wire.PCLink.String(), wire.PCAddress.String(), mac, wire.Uplink, keyFile, "[]", policyFile})
}

func render(v values) (string, error) {
	var b strings.Builder
	err := configTemplate.Execute(&b, v)
	return b.String(), err
}

// macOf gives each lab name its own locally administered address in QEMU's range.
func macOf(name string) string {
	h := sha256.Sum256([]byte("portcullis-lab-mac\x00" + name))
	return fmt.Sprintf("52:54:00:%02x:%02x:%02x", h[0], h[1], h[2])
}
