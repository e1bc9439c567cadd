package lab

import (
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"portcullis/internal/rpc"
	"portcullis/lab/channel"
	"portcullis/lab/pi"
	"portcullis/lab/qemu"
	"portcullis/lab/wire"
)

// What the Pi of a lab is.
const (
	PiNetns = "netns" // a namespace of this machine with the services in it
	PiImage = "image" // a machine in QEMU that boots the built SD card
)

// Places in the running Pi that is a machine.
const (
	piRunDir   = "/run/portcullis"
	piStateDir = "/var/lib/portcullis"
	piKeyFile  = piStateDir + "/attestd/gateway.key"
	piImages   = piStateDir + "/images/hpc"
	piTool     = "/usr/lib/portcullis/hpc-lab"
	piPCPort   = "eth1"
	piUplink   = "eth0"
	// piUIDs may ask gatewayd and pxed: the accounts of systemd/portcullis.sysusers.
	piUIDs = "[971, 972, 974]"
)

// BuiltPi is a card that has been booted before and holds the PC's image.
type BuiltPi struct {
	Card      pi.Card // to be copied
	Operator  string  // age recipient for the seed
	Approvers string  // file of approvers for the seed, of a Pi whose services are containers
	Services  string  // directory of their images and approvals
	First     *pi.Provisioned
}

// BuildPi builds the Pi's image, boots a card of it for the first time, asks it
// for its key, builds the PC's image for that key and puts that on the card.
// Each of these is done once for the same inputs. Where contained is true the image
// holds the services as container images, and the Pi has run them as such from its first
// boot on.
func (b *Builder) BuildPi(ctx context.Context, contained bool, say func(what string)) (*Built, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.onPi[contained] != nil {
		return b.onPi[contained], nil
	}
	start := b.Repository
	if start == "" {
		start = "."
	}
	repo, err := FindRepository(start)
	if err != nil {
		return nil, err
	}
	built, err := programsOf(ctx, repo, say)
	if err != nil {
		return nil, err
	}
	pb := &pi.Builder{Repository: repo, Say: say}
	seed, err := pb.Seed(ctx)
	if err != nil {
		return nil, err
	}
	var variant pi.Variant
	var approvers string
	if contained {
		if _, approvers, err = pb.Approver(ctx); err != nil {
			return nil, err
		}
		if variant.Services, err = pb.Services(ctx, filepath.Join(built.Bin, "portcullis")); err != nil {
			return nil, err
		}
		seed = pi.Contained(seed, approvers)
	}
	img, err := pb.Image(ctx, variant)
	if err != nil {
		return nil, err
	}
	first, err := pb.Provisioned(ctx, img, pi.Direct, seed)
	if err != nil {
		return nil, err
	}
	if built.Gateway, err = base64.StdEncoding.DecodeString(first.Gateway); err != nil || len(built.Gateway) != ed25519.PublicKeySize {
		return nil, fmt.Errorf("lab: the Pi's key %q is no key", first.Gateway)
	}
	unlock, err := buildLock(ctx, repo, "image")
	if err != nil {
		return nil, err
	}
	defer unlock()
	built.ReleaseSecret = pb.KeyFile()
	if err := built.image(ctx, b.Kernel, b.Recipe, say); err != nil {
		return nil, err
	}
	_, operator, err := pb.Operator(ctx)
	if err != nil {
		return nil, err
	}
	loaded, err := pb.Loaded(ctx, first, built.Image)
	if err != nil {
		return nil, err
	}
	built.Pi = &BuiltPi{Card: loaded, Operator: operator, Approvers: approvers, Services: variant.Services, First: first}
	if b.onPi == nil {
		b.onPi = map[bool]*Built{}
	}
	b.onPi[contained] = built
	return built, nil
}

// uplinkMAC is the hardware address of the Pi's port to net, portMAC that of its
// port to the PC.
func uplinkMAC(name string) string { return macOf(name + " uplink of the Pi") }
func portMAC(name string) string   { return macOf(name + " port of the Pi") }

// piConfig renders the configuration of a Pi that is a machine.
func piConfig(s Settings, mac string) (string, error) {
	s.ImageDir = piImages
	return render(values{s, piRunDir, piStateDir, piPCPort, wire.PCLink.String(), wire.PCAddress.String(), mac, piUplink, piKeyFile, piUIDs, ""})
}

// bootPi copies the card, puts this lab's settings on it and powers the Pi on
// until its services are ready.
func (l *Lab) bootPi(ctx, followCtx context.Context) error {
	began := time.Now()
	card, err := l.layCard()
	if err != nil {
		return err
	}
	dir := l.place.file("pi")
	l.follow(followCtx, pi.ConsoleLog(dir), l.piConsole)
	l.follow(followCtx, pi.EventLog(dir), func(line []byte) {
		if e, ok := ParseEvent(line, ""); ok {
			l.Log.Add(e)
		}
	})
	mark := l.Log.Mark()
	l.pi, err = pi.Start(ctx, pi.Config{
		Name: l.Name, Dir: dir, Card: card.Image, TPM: card.TPM,
		NICs:  []pi.NIC{{Tap: wire.PiUplink, MAC: uplinkMAC(l.Name)}, {Tap: wire.PiPCPort, MAC: portMAC(l.Name)}},
		Start: l.Wire.Gateway.Start,
		Power: func(b pi.Boot) {
			for name, pid := range b.PIDs {
				l.note(newProcess(name, pid))
			}
			l.Event("pi.power", map[string]any{"state": "on", "reason": b.Reason, "boot": b.Number, "partition": b.Partition})
		},
	})
	if err != nil {
		return err
	}
	if err := l.acceptSettings(ctx); err != nil {
		return err
	}
	for _, name := range Services {
		if err := l.piReady(ctx, mark, name); err != nil {
			return err
		}
	}
	// net knows the Pi's address already; the Pi must not ask for net's while
	// frames are counted.
	mac, err := l.Wire.Net.MAC(wire.NetPort)
	if err != nil {
		return err
	}
	for _, a := range []string{wire.World.Addr().String(), wire.World6.Addr().String()} {
		if _, err := l.pi.Output(ctx, "ip", "neigh", "replace", a, "lladdr", mac, "dev", piUplink, "nud", "permanent"); err != nil {
			return err
		}
	}
	l.Event("pi.ready", map[string]any{"seconds": seconds(began)})
	return nil
}

// acceptSettings plays the operator: the settings of this lab are not those of the
// card's first boot, and pi-init asks for the recovery key before it takes others.
func (l *Lab) acceptSettings(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, piLimit)
	defer cancel()
	said, err := l.pi.Expect(ctx, `settings on the card were changed[^\n]*left\): |portcullis: stage=settings`)
	if err != nil || strings.Contains(said[0], "stage=settings") {
		return err
	}
	return l.pi.Send(l.Built.Pi.First.Recovery + "\n")
}

// piLimit bounds the Pi's boot to running services on a busy machine.
const piLimit = 5 * time.Minute

// piReady waits for a service's own event ready, or for the Pi's end.
func (l *Lab) piReady(ctx context.Context, mark int, name string) error {
	ctx, cancel := context.WithTimeout(ctx, piLimit)
	defer cancel()
	go func() {
		select {
		case <-l.pi.Done():
			cancel()
		case <-ctx.Done():
		}
	}()
	_, err := l.Log.Wait(ctx, mark, func(e Event) bool { return e.Name == "ready" && e.Source == name })
	if err != nil {
		return fmt.Errorf("lab: %s did not become ready in the Pi: %w; console:\n%s", name, errors.Join(err, l.pi.Err()), l.PiConsole())
	}
	return nil
}

// layCard makes this lab's copy of the card. It is large and not in the state
// directory, which may be in memory; the record names it for `lab down`.
func (l *Lab) layCard() (pi.Card, error) {
	dir, err := os.MkdirTemp(filepath.Join(l.Built.Repository, "build", "pi"), "run-"+l.Name+"-")
	if err != nil {
		return pi.Card{}, fmt.Errorf("lab: %w", err)
	}
	l.mu.Lock()
	l.record.Remove = append(l.record.Remove, dir)
	err = l.place.save(l.record)
	l.mu.Unlock()
	if err != nil {
		return pi.Card{}, err
	}
	if err := os.MkdirAll(l.place.file("pi"), 0o700); err != nil {
		return pi.Card{}, fmt.Errorf("lab: %w", err)
	}
	card, err := l.Built.Pi.Card.Copy(dir)
	if err != nil {
		return card, err
	}
	text, err := piConfig(l.Settings, l.MAC)
	if err != nil {
		return card, fmt.Errorf("lab: configuration: %w", err)
	}
	seed := pi.Seed(l.Built.Pi.Operator, wire.UpAddress.String(), text)
	if l.Built.Pi.Approvers != "" {
		seed = pi.Contained(seed, l.Built.Pi.Approvers)
	}
	return card, card.Seed(seed)
}

// piConsole makes events of pi-init's stages.
func (l *Lab) piConsole(line []byte) {
	if e, ok := ParseConsole(string(line), time.Now()); ok {
		e.Name, e.Source = strings.Replace(e.Name, "pc.", "pi.", 1), "pi"
		l.Log.Add(e)
	}
}

// Pi returns the Pi that is a machine; nil when it is a namespace.
func (l *Lab) Pi() *pi.Machine { return l.pi }

// PiConsole returns the end of the Pi's serial console, for failure reports.
func (l *Lab) PiConsole() string { return readable(lastLine(pi.ConsoleLog(l.place.file("pi")))) }

// Client asks a service of the Pi; socket is one of package rpc's names.
func (l *Lab) Client(socket string) *http.Client {
	if l.pi == nil {
		return rpc.Client(filepath.Join(l.RunDir(), socket))
	}
	return &http.Client{Transport: &channel.Transport{
		Channel: pi.ChannelSocket(l.place.file("pi")), Pipe: []string{piTool, "pipe"}, Path: filepath.Join(piRunDir, socket),
	}}
}

// Ports of the Pi towards the PC: interface name inside the Pi, hardware address.
func (l *Lab) PCPort() (name, mac string, err error) {
	if l.pi != nil {
		return piPCPort, portMAC(l.Name), nil
	}
	mac, err = l.Wire.Gateway.MAC(wire.PCPort)
	return wire.PCPort, mac, err
}

// holdFile keeps systemd from starting a killed service again.
func holdFile(name string) string { return "/run/systemd/system/" + name + ".service.d/lab-hold.conf" }

// piKill kills a service in the Pi as a crash does.
func (l *Lab) piKill(ctx context.Context, name string, hold bool) error {
	if hold {
		script := `mkdir -p "$(dirname "$1")" && printf '[Service]\nRestart=no\n' > "$1" && systemctl daemon-reload`
		if _, err := l.pi.Output(ctx, "/bin/sh", "-c", script, "sh", holdFile(name)); err != nil {
			return err
		}
	}
	_, err := l.pi.Output(ctx, "systemctl", "kill", "--signal=KILL", "--kill-whom=main", name+".service")
	return err
}

func (l *Lab) piRelease(ctx context.Context, name string) error {
	_, err := l.pi.Output(ctx, "/bin/sh", "-c", `rm -f "$1" && systemctl daemon-reload && systemctl start "$2"`, "sh", holdFile(name), name+".service")
	return err
}

// ExecPi runs a command as root in the Pi that is a machine.
func (l *Lab) ExecPi(ctx context.Context, argv ...string) (channel.Response, error) {
	if l.pi == nil {
		return channel.Response{}, errors.New("lab: this lab's Pi is a namespace: use ip netns exec")
	}
	return l.pi.Exec(ctx, argv...)
}

// Channels are the command channels' sockets of the lab in dir, by machine.
func Channels(dir string) map[string]string {
	return map[string]string{"pc": qemu.ChannelSocket(filepath.Join(dir, "pc")), "pi": pi.ChannelSocket(filepath.Join(dir, "pi"))}
}
