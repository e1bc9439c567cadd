package approval

import (
	"bytes"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func digest(c string) string { return "sha256:" + strings.Repeat(c, 64) }

func sample() Approval {
	return Approval{
		Schema: Schema, Name: "pxed", Version: 3, Purpose: "service/pxed",
		Image: Image{digest("a"), digest("b"), []string{digest("c"), digest("d")}},
		Profile: Profile{
			User: "972:972", Capabilities: []string{"CAP_NET_BIND_SERVICE", "CAP_NET_RAW"}, Network: NetworkHost,
			Mounts: []Mount{{"/etc/portcullis", "/etc/portcullis", false}, {"/var/lib/portcullis/pxed", "/var/lib/portcullis/pxed", true}},
			Tmpfs:  []Tmpfs{{"/tmp", 1 << 20}}, Env: []string{"LANG=C", "TZ"},
			Limits: Limits{64 << 20, 64, 500},
		},
		NotBefore: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC),
		NotAfter:  time.Date(2027, 1, 1, 0, 0, 0, 0, time.UTC),
	}
}

func someKeys(t testing.TB, n int) (signers []crypto.Signer, public []ed25519.PublicKey) {
	t.Helper()
	for range n {
		pub, key, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		signers, public = append(signers, key), append(public, pub)
	}
	return signers, public
}

func wants(t *testing.T, what string, err error, reason string) {
	t.Helper()
	if Reason(err) != reason || reason == "" && err != nil {
		t.Errorf("%s: %v, want %q", what, err, reason)
	}
}

func TestSignedApprovalIsRead(t *testing.T) {
	signers, keys := someKeys(t, 3)
	a := sample()
	envelope, err := a.Sign(signers[0])
	if err != nil {
		t.Fatal(err)
	}
	two := Approvers{2, 1, keys}
	_, _, err = two.Open(envelope)
	wants(t, "one signature of two", err, ReasonThreshold)
	if envelope, err = Cosign(envelope, signers[2]); err != nil {
		t.Fatal(err)
	}
	got, name, err := two.Open(envelope)
	if err != nil {
		t.Fatal(err)
	}
	one, _ := a.Encode()
	other, _ := got.Encode()
	if !bytes.Equal(one, other) || name != Digest(one) {
		t.Errorf("read %s, signed %s", other, one)
	}
	_, err = Cosign(envelope, signers[2])
	wants(t, "the same key twice", err, ReasonMalformed)
	p, err := Peek(envelope)
	if err != nil || p.Approval == nil || p.Digest != name || len(p.KeyIDs) != 2 {
		t.Errorf("peek: %+v %v", p, err)
	}
}

func TestAttack_EnvelopesThatAreNotBelieved(t *testing.T) {
	signers, keys := someKeys(t, 4)
	approvers := Approvers{2, 1, keys[:3]}
	good, err := sample().Sign(signers[0], signers[1])
	if err != nil {
		t.Fatal(err)
	}
	r := Revocation{RevocationSchema, "", digest("a"), "stolen key", time.Date(2026, 5, 1, 0, 0, 0, 0, time.UTC)}
	revocation, err := r.Sign(signers[0], signers[1])
	if err != nil {
		t.Fatal(err)
	}
	stranger, _ := sample().Sign(signers[3])
	half, _ := sample().Sign(signers[0], signers[3])
	other := sample()
	other.Profile.Capabilities = []string{"CAP_SYS_ADMIN"}
	wider, _ := other.Sign(signers[0])
	// The signatures of one approval under the payload of another.
	grafted := append(bytes.Clone(wider[:bytes.Index(wider, []byte(`"signatures"`))]), good[bytes.Index(good, []byte(`"signatures"`)):]...)
	for _, c := range []struct {
		name, reason string
		data         []byte
	}{
		{"nothing", ReasonMalformed, nil},
		{"a stranger's signature", ReasonSignature, stranger},
		{"a stranger beside an approver", ReasonThreshold, half},
		{"a revocation as an approval", ReasonMalformed, revocation},
		{"signatures of another payload", ReasonSignature, grafted},
		{"white space", ReasonMalformed, append([]byte(" "), good...)},
		{"data behind the end", ReasonMalformed, append(bytes.Clone(good), '{')},
		{"too long", ReasonMalformed, bytes.Repeat([]byte(" "), MaxEnvelope+1)},
	} {
		_, _, err := approvers.Open(c.data)
		wants(t, c.name, err, c.reason)
	}
	if _, err := approvers.OpenRevocation(good); Reason(err) != ReasonMalformed {
		t.Errorf("an approval as a revocation: %v", err)
	}
	if got, err := approvers.OpenRevocation(revocation); err != nil || *got != r {
		t.Errorf("revocation: %+v %v", got, err)
	}
	for i := range good {
		bad := bytes.Clone(good)
		bad[i] ^= 1
		if _, _, err := approvers.Open(bad); err == nil {
			t.Fatalf("accepted with byte %d changed", i)
		}
	}
}

// Absence of policy is denial.
func TestInvariant07_NoApproversApproveNothing(t *testing.T) {
	signers, keys := someKeys(t, 1)
	envelope, err := sample().Sign(signers[0])
	if err != nil {
		t.Fatal(err)
	}
	_, _, err = Approvers{}.Open(envelope)
	wants(t, "no approvers", err, ReasonApprovers)
	dir := t.TempDir()
	_, err = LoadApprovers(filepath.Join(dir, "none"))
	wants(t, "no file", err, ReasonApprovers)
	text, err := Approvers{1, 1, keys}.Encode()
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "approvers.json")
	if err := os.WriteFile(file, append(text, '\n'), 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := LoadApprovers(file)
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := got.Open(envelope); err != nil {
		t.Error(err)
	}
	zero := make(ed25519.PublicKey, ed25519.PublicKeySize)
	for name, bad := range map[string]Approvers{
		"threshold 0": {0, 1, keys}, "more than there are": {2, 1, keys}, "revoke threshold 0": {1, 0, keys},
		"a key twice": {1, 1, []ed25519.PublicKey{keys[0], keys[0]}}, "the zero key": {1, 1, []ed25519.PublicKey{zero}},
		"a short key": {1, 1, []ed25519.PublicKey{{1}}}, "no key": {1, 1, nil},
	} {
		_, _, err := bad.Open(envelope)
		wants(t, name, err, ReasonApprovers)
	}
	for _, bad := range []string{"", "{}", string(text[:len(text)-1]) + `,"more":1}`, strings.Replace(string(text), "threshold", "Threshold", 1)} {
		_, err := ParseApprovers([]byte(bad))
		wants(t, bad, err, ReasonApprovers)
	}
}

func TestValuesOutOfRange(t *testing.T) {
	signers, _ := someKeys(t, 1)
	for name, change := range map[string]func(*Approval){
		"schema":                 func(a *Approval) { a.Schema = "v2" },
		"name":                   func(a *Approval) { a.Name = "Pxed" },
		"version 0":              func(a *Approval) { a.Version = 0 },
		"purpose":                func(a *Approval) { a.Purpose = "a b" },
		"no time":                func(a *Approval) { a.NotAfter = a.NotBefore },
		"year 1999":              func(a *Approval) { a.NotBefore = time.Date(1999, 1, 1, 0, 0, 0, 0, time.UTC) },
		"digest of another kind": func(a *Approval) { a.Image.Config = "sha512:" + strings.Repeat("a", 64) },
		"digest in capitals":     func(a *Approval) { a.Image.Manifest = digest("A") },
		"no layer":               func(a *Approval) { a.Image.Layers = nil },
		"too many layers":        func(a *Approval) { a.Image.Layers = make([]string, MaxLayers+1) },
		"user by name":           func(a *Approval) { a.Profile.User = "root" },
		"user without group":     func(a *Approval) { a.Profile.User = "0" },
		"no network named":       func(a *Approval) { a.Profile.Network = "" },
		"network of a container": func(a *Approval) { a.Profile.Network = "container:x" },
		"all capabilities":       func(a *Approval) { a.Profile.Capabilities = []string{"ALL"} },
		"capabilities unsorted":  func(a *Approval) { a.Profile.Capabilities = []string{"CAP_NET_RAW", "CAP_NET_ADMIN"} },
		"mount of /":             func(a *Approval) { a.Profile.Mounts = []Mount{{"/", "/host", false}} },
		"mount over /":           func(a *Approval) { a.Profile.Mounts = []Mount{{"/etc", "/", false}} },
		"mount with ..":          func(a *Approval) { a.Profile.Mounts = []Mount{{"/var/../etc", "/e", false}} },
		"relative mount":         func(a *Approval) { a.Profile.Mounts = []Mount{{"etc", "/e", false}} },
		"mount twice":            func(a *Approval) { a.Profile.Mounts = []Mount{{"/a", "/e", false}, {"/b", "/e", false}} },
		"tmpfs over a mount":     func(a *Approval) { a.Profile.Tmpfs = []Tmpfs{{"/etc/portcullis", 4096}} },
		"tmpfs without size":     func(a *Approval) { a.Profile.Tmpfs = []Tmpfs{{"/tmp", 0}} },
		"NUL in a command":       func(a *Approval) { a.Profile.Command = []string{"a\x00b"} },
		"command and any":        func(a *Approval) { a.Profile.Command, a.Profile.AnyCommand = []string{"a"}, true },
		"variable twice":         func(a *Approval) { a.Profile.Env = []string{"A", "A=1"} },
		"variable without name":  func(a *Approval) { a.Profile.Env = []string{"=1"} },
		"newline in a variable":  func(a *Approval) { a.Profile.Env = []string{"A=1\nB=2"} },
		"no memory limit":        func(a *Approval) { a.Profile.Limits.MemoryBytes = 0 },
		"no pid limit":           func(a *Approval) { a.Profile.Limits.Pids = 0 },
		"no CPU limit":           func(a *Approval) { a.Profile.Limits.MilliCPU = 0 },
	} {
		a := sample()
		change(&a)
		_, err := a.Sign(signers[0])
		wants(t, name, err, ReasonMalformed)
	}
	issued := time.Date(2026, 5, 1, 0, 0, 0, 0, time.UTC)
	for name, r := range map[string]Revocation{
		"of nothing":        {RevocationSchema, "", "", "why", issued},
		"of both":           {RevocationSchema, digest("a"), digest("b"), "why", issued},
		"of a name":         {RevocationSchema, "", "pxed", "why", issued},
		"without a why":     {RevocationSchema, "", digest("b"), "", issued},
		"an escape in why":  {RevocationSchema, "", digest("b"), "\x1b[2J", issued},
		"without a time":    {RevocationSchema, "", digest("b"), "why", time.Time{}},
		"of another schema": {Schema, "", digest("b"), "why", issued},
	} {
		_, err := r.Sign(signers[0])
		wants(t, name, err, ReasonMalformed)
	}
}

func TestProfileCoversNoMoreThanItself(t *testing.T) {
	a := sample().Profile
	for _, c := range []struct {
		name   string
		change func(*Profile)
		ok     bool
	}{
		{"the same", func(*Profile) {}, true},
		{"less", func(p *Profile) {
			p.Capabilities, p.Mounts, p.Tmpfs, p.Env, p.Network = nil, nil, nil, nil, NetworkNone
			p.Limits = Limits{MinMemory, 1, 10}
		}, true},
		{"read-only where it may write", func(p *Profile) { p.Mounts = []Mount{{"/var/lib/portcullis/pxed", "/var/lib/portcullis/pxed", false}} }, true},
		{"a value for a variable", func(p *Profile) { p.Env = []string{"TZ=UTC"} }, true},
		{"writing where it may read", func(p *Profile) { p.Mounts = []Mount{{"/etc/portcullis", "/etc/portcullis", true}} }, false},
		{"another source", func(p *Profile) { p.Mounts = []Mount{{"/etc", "/etc/portcullis", false}} }, false},
		{"another variable", func(p *Profile) { p.Env = []string{"LD_PRELOAD=/x"} }, false},
		{"another value", func(p *Profile) { p.Env = []string{"LANG=D"} }, false},
		{"any value of a fixed one", func(p *Profile) { p.Env = []string{"LANG"} }, false},
		{"another user", func(p *Profile) { p.User = "0:0" }, false},
		{"another network", func(p *Profile) { p.Network = "bridge" }, false},
		{"a capability more", func(p *Profile) { p.Capabilities = []string{"CAP_SYS_ADMIN"} }, false},
		{"a root to write", func(p *Profile) { p.WritableRoot = true }, false},
		{"a command", func(p *Profile) { p.Command = []string{"/bin/sh"} }, false},
		{"any command", func(p *Profile) { p.AnyCommand = true }, false},
		{"a larger tmpfs", func(p *Profile) { p.Tmpfs = []Tmpfs{{"/tmp", 2 << 20}} }, false},
		{"another tmpfs", func(p *Profile) { p.Tmpfs = []Tmpfs{{"/run", 4096}} }, false},
		{"more memory", func(p *Profile) { p.Limits.MemoryBytes++ }, false},
		{"more processes", func(p *Profile) { p.Limits.Pids++ }, false},
		{"more CPU", func(p *Profile) { p.Limits.MilliCPU++ }, false},
	} {
		want := sample().Profile
		c.change(&want)
		if err := a.Covers(&want); (err == nil) != c.ok || err != nil && Reason(err) != ReasonProfile {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}
