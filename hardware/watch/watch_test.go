package watch

import (
	"context"
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"periph.io/x/conn/v3/gpio"
	"periph.io/x/conn/v3/gpio/gpiotest"

	v1 "portcullis/api/portcullis/v1"
	"portcullis/api/portcullis/v1/portcullisv1connect"
	"portcullis/hardware"
	"portcullis/hardware/fake"
	"portcullis/hardware/tpm2"
	"portcullis/hardware/tpm2/tpmtest"
	"portcullis/images/card"
	"portcullis/images/luks2"
	"portcullis/internal/clock"
	"portcullis/internal/event"
	"portcullis/internal/event/eventtest"
	"portcullis/internal/rpc"
)

const good = `schema: portcullis/tamper/v1
pins: {power: GPIO17, intrusion: GPIO22, led: GPIO23, intrusion_normally_open: true, debounce: 5ms}
zymbit: true
tamper:
  sources: {chassis: lock, perimeter-0: destroy}
  lock: lock this pi
  destroy: erase my disk
`

func TestConfigRefusals(t *testing.T) {
	if _, err := Parse([]byte(good)); err != nil {
		t.Fatal(err)
	}
	for name, s := range map[string]string{
		"empty":               "",
		"schema":              strings.Replace(good, "/v1", "/v2", 1),
		"unknown key":         good + "more: 1\n",
		"two documents":       good + "---\na: b\n",
		"opt-in missing":      strings.Replace(good, "  destroy: erase my disk\n", "", 1),
		"opt-in by yes":       strings.Replace(good, "erase my disk", "yes", 1),
		"line of the TPM":     strings.Replace(good, "GPIO22", "GPIO8", 1),
		"line of the Zymkey":  strings.Replace(good, "GPIO22", "GPIO4", 1),
		"same key twice":      good + "zymbit: false\n",
		"debounce is a word":  strings.Replace(good, "5ms", "soon", 1),
		"too large":           good + "#" + strings.Repeat("x", maxConfig),
		"actions in capitals": strings.Replace(good, "chassis: lock", "chassis: LOCK", 1),
	} {
		if c, err := Parse([]byte(s)); err == nil {
			t.Errorf("%s: %+v", name, c)
		}
	}
}

func TestNothingToWatchIsSaid(t *testing.T) {
	c, err := Parse([]byte("schema: portcullis/tamper/v1\npins: {power: GPIO17}\n"))
	if err != nil {
		t.Fatal(err)
	}
	if err := Run(t.Context(), Options{Config: c}); err == nil || !strings.Contains(err.Error(), "nothing to watch") {
		t.Error(err)
	}
}

func FuzzConfig(f *testing.F) {
	f.Add([]byte(good))
	f.Add([]byte("schema: portcullis/tamper/v1\nzymbit: true\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := Parse(b)
		if err == nil && c.Pins.Check() != nil {
			t.Error("an invalid wiring passed")
		}
	})
}

// counter counts what is done, safely.
type counter struct {
	mu   sync.Mutex
	did  []string
	done chan string
}

func (c *counter) do(s string) error {
	c.mu.Lock()
	c.did = append(c.did, s)
	c.mu.Unlock()
	c.done <- s
	return nil
}

func (c *counter) DropPC(context.Context) error { return c.do("drop-pc") }
func (c *counter) Cap(context.Context) error    { return c.do("cap") }
func (c *counter) Forget(context.Context) error { return c.do("forget") }
func (c *counter) Erase(context.Context) error  { return c.do("erase") }

func TestOpenedCaseLocksAndBreachedPerimeterDestroys(t *testing.T) {
	c, err := Parse([]byte(good))
	if err != nil {
		t.Fatal(err)
	}
	lines := map[string]*gpiotest.Pin{}
	for _, n := range []string{"GPIO22", "GPIO23"} {
		lines[n] = &gpiotest.Pin{N: n, EdgesChan: make(chan gpio.Level, 16)}
	}
	chip, err := fake.New(fake.Config{Profile: card.ProfileDev})
	if err != nil {
		t.Fatal(err)
	}
	hands, log := &counter{done: make(chan string, 16)}, &eventtest.Buffer{}
	connected := make(chan struct{}, 4)
	tries := 0
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- Run(ctx, Options{Config: c, Journal: filepath.Join(t.TempDir(), "j"), Hands: hands, Clock: quick{},
			Log:    event.NewJSON(log, "test", time.Now),
			Lookup: func(n string) gpio.PinIO { return lines[n] },
			Zymbit: func() (hardware.Root, error) {
				if tries++; tries == 1 {
					return nil, errors.New("not there yet")
				}
				connected <- struct{}{}
				return chip, nil
			}})
	}()
	<-connected
	lines["GPIO22"].EdgesChan <- gpio.High
	for _, want := range []string{"drop-pc", "cap"} {
		if got := <-hands.done; got != want {
			t.Errorf("%s instead of %s", got, want)
		}
	}
	chip.Breach(hardware.Tamper{Source: "perimeter-0"})
	for _, want := range []string{"drop-pc", "cap", "forget", "erase"} {
		if got := <-hands.done; got != want {
			t.Errorf("%s instead of %s", got, want)
		}
	}
	chip.Breach(hardware.Tamper{Source: "perimeter-7"}) // unknown: only reported
	for !strings.Contains(log.String(), "perimeter-7") {
		time.Sleep(time.Millisecond)
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if len(hands.did) != 6 {
		t.Errorf("%v", hands.did)
	}
	for _, want := range []string{EventStarted, EventSource, `"most":"destroy"`, `"result":"lost"`} {
		if !strings.Contains(log.String(), want) {
			t.Errorf("no %s in\n%s", want, log.String())
		}
	}
	if lines["GPIO23"].Read() != gpio.Low {
		t.Error("the light is still on")
	}
}

// quick is a clock without long waits.
type quick struct{ clock.Real }

func (quick) After(d time.Duration) <-chan time.Time { return time.After(min(d, 5*time.Millisecond)) }

// gateway is a gatewayd that only knows its phase.
type gateway struct {
	portcullisv1connect.UnimplementedGatewayHandler
	mu      sync.Mutex
	session string
	phase   v1.Phase
	calls   int
}

func (g *gateway) GetGatewayStatus(context.Context, *connect.Request[v1.GetGatewayStatusRequest]) (*connect.Response[v1.GetGatewayStatusResponse], error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return connect.NewResponse(&v1.GetGatewayStatusResponse{Session: g.session, Phase: g.phase}), nil
}

func (g *gateway) SetPhase(_ context.Context, r *connect.Request[v1.SetPhaseRequest]) (*connect.Response[v1.SetPhaseResponse], error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if r.Msg.Session != g.session {
		return nil, connect.NewError(connect.CodeFailedPrecondition, errors.New("another session"))
	}
	g.phase = r.Msg.Phase
	g.calls++
	return connect.NewResponse(&v1.SetPhaseResponse{}), nil
}

func TestHandsOnARealGatewaySocketChipAndVolume(t *testing.T) {
	dir := t.TempDir()
	g := &gateway{session: strings.Repeat("a", 26), phase: v1.Phase_PHASE_RUN}
	l, err := rpc.Listen(filepath.Join(dir, rpc.GatewaySocket), nil)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	mux := newMux(g)
	served := make(chan error, 1)
	go func() { served <- rpc.Serve(ctx, l, mux) }()
	defer func() { cancel(); <-served }()

	chip := tpmtest.Start(t)
	volume := filepath.Join(dir, "crypt")
	f, err := os.Create(volume)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	const size = card.CryptHeader + 1<<20
	if err := f.Truncate(size); err != nil {
		t.Fatal(err)
	}
	key := make([]byte, luks2.VolumeKeySize)
	if _, err := luks2.Format(f, size, luks2.Options{}, key); err != nil {
		t.Fatal(err)
	}
	h := &Hands{RunDir: dir, TPM: chip.Path, Crypt: func() (string, error) { return volume, nil }}
	for range 2 { // every step can be done twice
		for name, do := range map[string]func(context.Context) error{"drop": h.DropPC, "cap": h.Cap, "forget": h.Forget, "erase": h.Erase} {
			if err := do(t.Context()); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
	if g.phase != v1.Phase_PHASE_QUARANTINE || g.calls != 1 {
		t.Errorf("phase %s after %d calls", g.phase, g.calls)
	}
	if _, _, err := luks2.Read(f, size); luks2.ReasonOf(err) != luks2.ReasonNoHeader {
		t.Errorf("the volume still has a header: %v", err)
	}
	c, err := tpm2.Open(chip.Path, tpm2.Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if v, err := c.ReadPCR(t.Context(), card.PCRPhase); err != nil || v == [32]byte{} {
		t.Errorf("%x, %v: not capped", v, err)
	}
	g.mu.Lock()
	g.session, g.phase = "", v1.Phase_PHASE_IDLE
	g.mu.Unlock()
	if err := h.DropPC(t.Context()); err != nil || g.calls != 1 {
		t.Errorf("no PC: %v", err)
	}
}

func newMux(g *gateway) http.Handler {
	mux := http.NewServeMux()
	mux.Handle(portcullisv1connect.NewGatewayHandler(g))
	return mux
}
