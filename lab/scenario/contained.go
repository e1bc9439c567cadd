package scenario

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"portcullis/lab"
	"portcullis/lab/pi"
	"portcullis/lab/qemu"
	"portcullis/lab/wire"
	"portcullis/verifier/approval"
	"portcullis/verifier/declared"
)

// PiContained is a Pi whose pxed and attestd are containers: what it had from the first
// boot on, a PC that boots through them, pxed's rest, and the end of an image.
func PiContained() Play {
	return Play{Name: "pi-contained", Pi: lab.PiImage, Contained: true, Firmware: qemu.UEFIHTTP, Long: true, Scenes: []Scene{
		containedScene(), trusted(qemu.UEFIHTTP), restScene(), bellScene(), revokedScene(),
	}}
}

// containers of the Pi, by service: what verifierd says of each.
func (s *Stage) containers(ctx context.Context) (map[string]declared.Status, error) {
	// Its exit code is about the PC as well.
	r, err := s.ExecPi(ctx, "portcullis", "status", "--json")
	if err != nil {
		return nil, err
	}
	var said struct {
		Verifier struct {
			Services []declared.Status `json:"services"`
		} `json:"verifier"`
	}
	if err := json.Unmarshal(r.Stdout, &said); err != nil {
		return nil, fmt.Errorf("portcullis status: %w: %s%s", err, r.Stdout, r.Stderr)
	}
	out := map[string]declared.Status{}
	for _, one := range said.Verifier.Services {
		out[one.Service] = one
	}
	return out, nil
}

// becomes waits until verifierd says a state of a service.
func (s *Stage) becomes(ctx context.Context, service, state string, limit time.Duration) error {
	var last declared.Status
	for end := time.Now().Add(limit); ; time.Sleep(2 * time.Second) { // a question costs an emulated Pi half a second
		all, err := s.containers(ctx)
		if last = all[service]; err != nil || last.State == state {
			return err
		}
		if time.Now().After(end) {
			return fmt.Errorf("%s is %s %s %s, not %s after %s", service, last.State, last.Reason, last.Detail, state, limit)
		}
	}
}

// inPi runs a script in the Pi.
func (s *Stage) inPi(ctx context.Context, script string, words ...string) (string, error) {
	r, err := s.ExecPi(ctx, append([]string{"/bin/sh", "-c", script, "sh"}, words...)...)
	if err != nil {
		return "", err
	}
	return strings.TrimSpace(string(r.Stdout) + string(r.Stderr)), nil
}

// has are lines of /proc/PID/status of each service's program.
var has = map[string][]string{
	"pxed":    {"Uid:\t971\t971\t971\t971", "Gid:\t970\t970\t970\t970", "CapEff:\t0000000000002400", "CapAmb:\t0000000000002400", "NoNewPrivs:\t1", "Seccomp:\t2"},
	"attestd": {"Uid:\t972\t972\t972\t972", "Gid:\t970\t970\t970\t970", "CapEff:\t0000000000000000", "CapBnd:\t0000000000000000", "NoNewPrivs:\t1", "Seccomp:\t2"},
}

// containedScene: both run as containers and not as units, with their users and
// capabilities, behind systemd's filter of addresses, and write into its journal.
func containedScene() Scene {
	return Scene{
		Name: "contained", Title: "pxed and attestd run as approved containers: users, capabilities, filter of addresses, journal",
		Run: func(ctx context.Context, s *Stage) error {
			for _, service := range declared.Names {
				if err := s.becomes(ctx, service, declared.StateRunning, time.Minute); err != nil {
					return err
				}
				if unit, err := s.inPi(ctx, `systemctl is-active "$1.service"`, service); err != nil || unit != "inactive" {
					return fmt.Errorf("the unit of %s is %q %w", service, unit, err)
				}
				status, err := s.inPi(ctx, `pid=$(pgrep -f "^/usr/bin/$1 ") && cat /proc/$pid/status`, service)
				if err != nil {
					return err
				}
				for _, line := range has[service] {
					if !strings.Contains(status, line) {
						return fmt.Errorf("%s has not %q:\n%s", service, line, status)
					}
				}
				if err := s.filtered(ctx, service); err != nil {
					return err
				}
				// As the unit's: by its name, and as many lines as it writes.
				if lines, err := s.inPi(ctx, `journalctl --boot --quiet --no-pager --output=cat --identifier="$1"`, service); err != nil || !strings.Contains(lines, `"event":"ready"`) {
					return fmt.Errorf("the journal has of %s %q %w", service, lines, err)
				}
			}
			memory, err := s.inPi(ctx, `for n in verifierd dockerd containerd containerd-shim-runc-v2 pxed attestd gatewayd; do
for p in $(pgrep -f "^[^ ]*$n "); do echo "$n $(($(sed -n 's/^VmHWM:[^0-9]*\([0-9]*\).*/\1/p' /proc/$p/status) / 1024))"; done; done`)
			s.Note("MiB at most: %s", strings.ReplaceAll(memory, "\n", ", "))
			return err
		},
	}
}

// filtered moves a program of root into the control group of a service's container: it
// reaches the Pi's address on the PC's link, and nothing beyond, which it does outside of it.
func (s *Stage) filtered(ctx context.Context, service string) error {
	const script = `group=/sys/fs/cgroup$(sed -n 's/^0:://p' /proc/$(pgrep -f "^/usr/bin/$1 ")/cgroup)
case $group in */system-contained-$1.slice/*) ;; *) echo "its group is $group";; esac
[ "$3" = out ] || echo $$ >$group/cgroup.procs
exec /usr/lib/portcullis/hpc-lab send udp "$2"`
	const refused = "operation not permitted"
	link, world := wire.PCLink.Addr().String()+":9", wire.World.Addr().String()+":9"
	for _, try := range []struct {
		to, where string
		refused   bool
	}{{link, "in", false}, {world, "in", true}, {world, "out", false}} {
		said, err := s.inPi(ctx, script, service, try.to, try.where)
		if err != nil {
			return err
		}
		if strings.Contains(said, refused) != try.refused || strings.Contains(said, "its group") {
			return fmt.Errorf("from %s's group (%s) to %s: %s", service, try.where, try.to, said)
		}
	}
	return nil
}

// restLimit bounds the wait for pxed's rest: it does not rest in its first five minutes.
const restLimit = 8 * time.Minute

// restScene: when the boot is done pxed's container is gone, and the PC stays trusted.
func restScene() Scene {
	return Scene{
		Name: "pxed-rests", Title: "when the boot is done pxed's container is removed; the PC stays trusted",
		Run: func(ctx context.Context, s *Stage) error {
			began := time.Now()
			if err := s.becomes(ctx, "pxed", declared.StateResting, restLimit); err != nil {
				return err
			}
			if left, err := s.inPi(ctx, "docker -H unix:///run/portcullis/verifierd/docker.sock ps --all --format '{{.Names}}'; pgrep -f '^/usr/bin/pxed '"); err != nil || left != declared.Container("attestd") {
				return fmt.Errorf("while pxed rests there are %q %w", left, err)
			}
			s.Note("%.0f s after it was trusted", time.Since(began).Seconds())
			for _, e := range s.Log.Since(0) {
				if e.Name == "service.ended" {
					return fmt.Errorf("%s ended by itself: exit %s %s", e.Text("service"), e.Text("exit"), e.Text("detail"))
				}
			}
			// The agent connects anew with new keys, which wakes nobody.
			again, cancel := context.WithTimeout(ctx, 2*s.Settings.Rekey+time.Minute)
			defer cancel()
			if _, err := s.Log.Wait(again, s.Log.Mark(), lab.Is("rekey")); err != nil {
				return fmt.Errorf("the agent does not connect anew: %w", err)
			}
			if err := s.becomes(ctx, "pxed", declared.StateResting, 0); err != nil {
				return err
			}
			v, err := s.Verdict(ctx)
			if err == nil && v.State != Trusted {
				err = fmt.Errorf("the PC is %s", v.State)
			}
			return err
		},
	}
}

// bellScene: the PC boots again; its first packet brings pxed back, trust ends before it
// is offered anything, and it becomes trusted.
func bellScene() Scene {
	return Scene{
		Name: "pxed-wanted", Title: "the PC boots again: pxed's container comes back, and trust ends before the offer",
		Run: func(ctx context.Context, s *Stage) error {
			mark := s.Log.Mark()
			s.PowerCut()
			began := time.Now()
			verdict, err := s.Boot(ctx, BootLimit)
			if err != nil {
				return err
			}
			wanted, err := s.first(mark, lab.With("service.wanted", "service", "pxed"))
			if err != nil {
				return err
			}
			ready, err := s.first(mark, lab.With("service.ready", "service", "pxed"))
			if err != nil {
				return err
			}
			_, offer, err := s.endThenOffer(mark)
			if err != nil {
				return err
			}
			s.Note("%s; pxed ready after %.1f s, the offer after %.1f s, trusted (%s) %.1f s after power-on", wanted.Text("why"),
				ready.Time.Sub(wanted.Time).Seconds(), offer.Time.Sub(wanted.Time).Seconds(), verdict.Text("tier"), time.Since(began).Seconds())
			return nil
		},
	}
}

// revokedLimit is the time to the end of a revoked service on an emulated Pi beside other
// work, in ms. That a second is enough where the processor is a real one is shown by
// cmd/verifierd.TestInvariant07_ServicesAsContainers.
const revokedLimit = 5000

// revokedScene: the image of pxed is revoked; its container ends, and does not come back.
func revokedScene() Scene {
	return Scene{
		Name: "pxed-revoked", Title: "pxed's image is revoked: its container ends at once, attestd goes on",
		Run: func(ctx context.Context, s *Stage) error {
			envelope, err := s.revocation(ctx, "pxed")
			if err != nil {
				return err
			}
			if err := s.becomes(ctx, "pxed", declared.StateRunning, time.Minute); err != nil {
				return err
			}
			mark := s.Log.Mark()
			took, err := s.inPi(ctx, `printf %s "$1" >/tmp/revocation && portcullis approvals add /tmp/revocation >/dev/null && from=$(date +%s%N) &&
while [ -n "$(pgrep -f "^/usr/bin/pxed ")" ]; do sleep 0.1; done && echo $((($(date +%s%N) - from) / 1000000))`, string(envelope))
			if err != nil {
				return err
			}
			var ms int
			if _, err := fmt.Sscanf(took, "%d", &ms); err != nil || ms > revokedLimit {
				return fmt.Errorf("pxed ended after %q ms", took)
			}
			// It is told when the container is removed, for which an emulated engine takes its time.
			told, cancel := context.WithTimeout(ctx, time.Minute)
			defer cancel()
			if _, err := s.Log.Wait(told, mark, lab.With("container.ended", "reason", approval.ReasonRevoked)); err != nil {
				return fmt.Errorf("no container.ended: %w; %s", err, s.Why(mark))
			}
			if err := s.becomes(ctx, "pxed", declared.StateRefused, time.Minute); err != nil {
				return err
			}
			if err := s.becomes(ctx, "attestd", declared.StateRunning, 0); err != nil {
				return err
			}
			s.Note("ended within %d ms of the command's end", ms)
			return nil
		},
	}
}

// revocation is what this checkout's approver signs of a service's image.
func (s *Stage) revocation(ctx context.Context, service string) ([]byte, error) {
	b := &pi.Builder{Repository: s.Built.Repository}
	key, _, err := b.Approver(ctx)
	if err != nil {
		return nil, err
	}
	envelope, err := declared.Envelope(filepath.Join(s.Built.Pi.Services, service+".approval"))
	if err != nil {
		return nil, err
	}
	p, err := approval.Peek(envelope)
	if err != nil {
		return nil, err
	}
	if p.Approval == nil {
		return nil, errors.New("no approval of " + service)
	}
	return approval.Revocation{Schema: approval.RevocationSchema, Image: p.Approval.Image.Config, Why: "a test", Issued: time.Now()}.Sign(key)
}
