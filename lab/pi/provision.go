package pi

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"sort"
	"strings"
	"time"
)

// Provisioned is a card after its first boot, and what that boot showed. The
// machine is off. Copy the card before booting it: others use it too.
type Provisioned struct {
	Card     Card     `json:"-"`
	Image    *Image   `json:"-"`
	Recovery string   `json:"recovery"`          // recovery key, as it was shown once
	Gateway  string   `json:"gateway,omitempty"` // base64 public key of the Pi's attestd, development images only
	Timings  []Timing `json:"timings"`           // of the first boot
	Console  string   `json:"console"`           // all of it
	Firmware Firmware `json:"firmware"`
}

// Timing is when something was seen, in seconds since the power came on.
type Timing struct {
	What    string  `json:"what"`
	Seconds float64 `json:"seconds"`
}

// keptCards is how many provisioned cards stay in the build directory.
const keptCards = 6

// bootLimit bounds a boot with enrolment, or one that takes in the PC's image. It finds a Pi
// that hangs, not a host whose other work leaves it a fraction of a core.
const bootLimit = 15 * time.Minute

// recoveryForm is a recovery key on the console: systemd's eight groups of modhex.
const recoveryForm = `portcullis: recovery key[^\n]*\n[^a-z]*((?:[cbdefghijklnrtuv]{8}-){7}[cbdefghijklnrtuv]{8})`

// Provisioned returns a card of the image after its first boot with seed (see
// DefaultSeed). The boot is done once for an image, a seed and a firmware.
func (b *Builder) Provisioned(ctx context.Context, img *Image, firmware Firmware, seed string) (*Provisioned, error) {
	key := sha256.Sum256([]byte(img.Digest + "\x00" + string(firmware) + "\x00" + seed))
	name := "card-" + hex.EncodeToString(key[:8])
	unlock, err := b.lock(ctx, name)
	if err != nil {
		return nil, err
	}
	defer unlock()
	dir := b.dir(name)
	if p, err := loadProvisioned(dir, img); err == nil {
		now := time.Now()
		os.Chtimes(dir, now, now)
		return p, nil
	}
	tmp, err := os.MkdirTemp(b.dir(""), ".card-")
	if err != nil {
		return nil, fmt.Errorf("pi: %w", err)
	}
	defer os.RemoveAll(tmp)
	b.say("first boot of a card")
	p, err := provision(ctx, img, firmware, seed, tmp)
	if err != nil {
		return nil, fmt.Errorf("pi: first boot: %w", err)
	}
	if err := writeJSON(filepath.Join(tmp, "provisioned.json"), p); err != nil {
		return nil, fmt.Errorf("pi: %w", err)
	}
	if err := os.RemoveAll(dir); err != nil {
		return nil, fmt.Errorf("pi: %w", err)
	}
	if err := os.Rename(tmp, dir); err != nil {
		return nil, fmt.Errorf("pi: %w", err)
	}
	b.prune("card-*/provisioned.json")
	return loadProvisioned(dir, img)
}

func loadProvisioned(dir string, img *Image) (*Provisioned, error) {
	b, err := os.ReadFile(filepath.Join(dir, "provisioned.json"))
	if err != nil {
		return nil, err
	}
	p := &Provisioned{}
	if err := json.Unmarshal(b, p); err != nil {
		return nil, err
	}
	p.Card, p.Image = InDir(dir), img
	return p, nil
}

// prune removes the oldest cards that pattern finds beyond keptCards.
func (b *Builder) prune(pattern string) {
	found, _ := filepath.Glob(b.dir(pattern))
	age := func(p string) time.Time {
		st, err := os.Stat(filepath.Dir(p))
		if err != nil {
			return time.Time{}
		}
		return st.ModTime()
	}
	sort.Slice(found, func(i, j int) bool { return age(found[i]).After(age(found[j])) })
	for _, old := range found[min(keptCards, len(found)):] {
		os.RemoveAll(filepath.Dir(old))
	}
}

// provision boots a new card in dir until its services are up and shuts it down.
func provision(ctx context.Context, img *Image, firmware Firmware, seed, dir string) (*Provisioned, error) {
	ctx, cancel := context.WithTimeout(ctx, bootLimit)
	defer cancel()
	c, err := NewCard(img.Card, dir, 0)
	if err != nil {
		return nil, err
	}
	if err := c.Seed(seed); err != nil {
		return nil, err
	}
	run, err := os.MkdirTemp("", "pi-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(run)
	m, err := Start(ctx, Config{Name: "first-boot", Dir: run, Firmware: firmware, Card: c.Image, TPM: c.TPM})
	if err != nil {
		return nil, err
	}
	defer m.Kill()
	p := &Provisioned{Firmware: firmware}
	began := time.Now()
	seen := func(what string) { p.Timings = append(p.Timings, Timing{what, time.Since(began).Seconds()}) }
	key, err := m.Expect(ctx, recoveryForm)
	if err != nil {
		return nil, err
	}
	p.Recovery = key[1]
	seen("recovery-key")
	if _, err := m.Expect(ctx, `portcullis: stage=switch-root`); err != nil {
		return nil, err
	}
	seen("switch-root")
	if err := m.Running(ctx); err != nil {
		return nil, errors.Join(err, fmt.Errorf("console:\n%s", m.Console().tail()))
	}
	seen("services")
	if p.Gateway, err = m.GatewayKey(ctx); err != nil {
		return nil, err
	}
	if err := m.PowerOff(ctx); err != nil {
		return nil, err
	}
	seen("off")
	p.Console = m.Console().Text()
	return p, nil
}

// Running waits until systemd in the Pi has started everything, over the command
// channel. Units that failed are named in the error.
func (m *Machine) Running(ctx context.Context) error {
	r, err := m.Exec(ctx, "systemctl", "is-system-running", "--wait")
	if err != nil {
		return err
	}
	state := strings.TrimSpace(string(r.Stdout))
	if state == "running" {
		return nil
	}
	failed, err := m.Output(ctx, "systemctl", "list-units", "--failed", "--no-legend", "--plain", "--no-pager")
	if err != nil {
		return err
	}
	why := ""
	for line := range strings.Lines(failed) {
		if unit, _, ok := strings.Cut(line, " "); ok {
			said, err := m.Output(ctx, "journalctl", "--boot", "--no-pager", "--output=cat", "--lines=20", "--unit="+unit)
			if err != nil {
				return err
			}
			why += unit + ":\n" + said
		}
	}
	return fmt.Errorf("pi: systemd is %q %s%s\n%s", state, r.Stderr, r.Error, why)
}

var gatewayKey = regexp.MustCompile(`^[A-Za-z0-9+/]{43}=$`)

// GatewayKey asks the Pi for the public key of its attestd, in base64: images of
// the PC are built for it.
func (m *Machine) GatewayKey(ctx context.Context) (string, error) {
	out, err := m.Output(ctx, "portcullis", "identity", "--json")
	if err != nil {
		return "", err
	}
	var id struct {
		Gateway string `json:"gateway_key"`
	}
	if err := json.Unmarshal([]byte(out), &id); err != nil || !gatewayKey.MatchString(id.Gateway) {
		return "", fmt.Errorf("pi: portcullis identity printed %q", out)
	}
	return id.Gateway, nil
}
