package declared

import (
	"crypto/ed25519"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"portcullis/images/service"
	"portcullis/internal/config"
	"portcullis/verifier/approval"
	"portcullis/verifier/image"
)

// What a container has is what its unit has: user, capabilities, and what it writes.
func TestProfilesAreTheUnits(t *testing.T) {
	setting := func(unit, key string) string {
		m := regexp.MustCompile(`(?m)^` + key + `=(.*)$`).FindStringSubmatch(unit)
		if m == nil {
			t.Fatalf("no %s", key)
		}
		return m[1]
	}
	users, err := os.ReadFile("../../systemd/portcullis.sysusers")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range Names {
		b, err := os.ReadFile("../../systemd/" + name + ".service")
		if err != nil {
			t.Fatal(err)
		}
		unit := string(b)
		p, err := Profile(name, Standard)
		if err != nil {
			t.Fatal(err)
		}
		user, caps := p.User, p.Capabilities
		if i := slices.Index(p.Command, "--user"); i >= 0 {
			// It becomes its user itself, and keeps the others of its capabilities.
			user = p.Command[i+1]
			caps = slices.DeleteFunc(slices.Clone(caps), func(c string) bool { return c == "CAP_SETGID" || c == "CAP_SETUID" })
		}
		id, _, _ := strings.Cut(user, ":")
		if !strings.Contains(string(users), "u "+setting(unit, "User")+" "+id+" ") || !strings.HasSuffix(user, ":970") || !strings.Contains(string(users), "g portcullis-images 970 ") {
			t.Errorf("%s is user %s", name, user)
		}
		if got := strings.Join(caps, " "); got != setting(unit, "CapabilityBoundingSet") {
			t.Errorf("%s has %s", name, got)
		}
		var writes []string
		for _, m := range p.Mounts {
			if m.Writable {
				writes = append(writes, m.Target)
			}
		}
		if want := []string{"/run/" + setting(unit, "RuntimeDirectory"), "/var/lib/" + setting(unit, "StateDirectory")}; !slices.Equal(writes, want) {
			t.Errorf("%s writes to %v, its unit to %v", name, writes, want)
		}
		// The slice of the container says what its unit says of addresses.
		b, err = os.ReadFile("../../systemd/" + config.Slice(name))
		if err != nil {
			t.Fatal(err)
		}
		for _, key := range []string{"IPAddressDeny", "IPAddressAllow"} {
			if of, want := setting(string(b), key), setting(unit, key); of != want {
				t.Errorf("%s: %s=%s in the slice, %s in the unit", name, key, of, want)
			}
		}
		if setting(unit, "MemoryMax") != map[int64]string{512 << 20: "512M", 128 << 20: "128M"}[p.Limits.MemoryBytes] {
			t.Errorf("%s has %d bytes of memory", name, p.Limits.MemoryBytes)
		}
	}
	if _, err := Profile("gatewayd", Standard); err == nil {
		t.Error("gatewayd is no container")
	}
}

// stuff makes a directory as 'image services' does.
func stuff(t *testing.T, key ed25519.PrivateKey, change func(*approval.Approval)) string {
	t.Helper()
	dir := t.TempDir()
	for _, name := range Names {
		program := filepath.Join(t.TempDir(), name)
		if err := os.WriteFile(program, []byte("program "+name), 0o700); err != nil {
			t.Fatal(err)
		}
		b, err := service.Pack(name, "arm64", program, dir)
		if err != nil {
			t.Fatal(err)
		}
		p, err := Profile(name, Standard)
		if err != nil {
			t.Fatal(err)
		}
		a := approval.Approval{Schema: approval.Schema, Name: name, Version: 1, Purpose: Purpose(name), Profile: p,
			Image: approval.Image{Manifest: b.Manifest, Config: b.Config, Layers: b.Layers}, NotBefore: time.Now(), NotAfter: time.Now().Add(time.Hour)}
		if change != nil {
			change(&a)
		}
		envelope, err := a.Sign(key)
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, name+".approval"), envelope, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// What cannot run on the Pi does not go into its image.
func TestArchives(t *testing.T) {
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	files, err := Archives(t.Context(), stuff(t, key, nil))
	if err != nil || len(files) != 2*len(Names) {
		t.Fatalf("%v %v", files, err)
	}
	for reason, change := range map[string]func(*approval.Approval){
		approval.ReasonPurpose: func(a *approval.Approval) { a.Purpose = "task" },
		approval.ReasonProfile: func(a *approval.Approval) { a.Profile.Mounts = a.Profile.Mounts[1:] },
		approval.ReasonDiffers: func(a *approval.Approval) { a.Image.Config = "sha256:" + strings.Repeat("0", 64) },
	} {
		if files, err := Archives(t.Context(), stuff(t, key, change)); approval.Reason(err) != reason {
			t.Errorf("%s: %v %v", reason, files, err)
		}
	}
	for what, damage := range map[string]func(dir string) error{
		"no approval": func(dir string) error { return os.Remove(filepath.Join(dir, "attestd.approval")) },
		"no archive":  func(dir string) error { return os.WriteFile(filepath.Join(dir, "pxed.tar"), []byte("x"), 0o600) },
		"too long": func(dir string) error {
			return os.Truncate(filepath.Join(dir, "pxed.approval"), approval.MaxEnvelope+1)
		},
		"nothing": func(dir string) error { return os.RemoveAll(dir) },
	} {
		dir := stuff(t, key, nil)
		if err := damage(dir); err != nil {
			t.Fatal(err)
		}
		if files, err := Archives(t.Context(), dir); err == nil {
			t.Errorf("%s: %v", what, files)
		}
	}
	// For another machine.
	dir := stuff(t, key, nil)
	program := filepath.Join(t.TempDir(), "pxed")
	if err := os.WriteFile(program, []byte("x"), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := service.Pack("pxed", "amd64", program, dir); err != nil {
		t.Fatal(err)
	}
	if _, err := Archives(t.Context(), dir); image.Reason(err) != image.ReasonPlatform {
		t.Errorf("for another machine: %v", err)
	}
}
