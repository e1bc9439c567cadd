package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/sys/unix"

	v1 "portcullis/api/portcullis/v1"
	"portcullis/api/portcullis/v1/portcullisv1connect"
	"portcullis/images/service"
	"portcullis/internal/config"
	"portcullis/internal/drop"
	"portcullis/internal/rpc"
	"portcullis/lab/dockerd"
	"portcullis/verifier/approval"
	"portcullis/verifier/declared"
	"portcullis/verifier/image"
	"portcullis/verifier/services"
)

// serviceOfATest is what the images of these tests run: it becomes its user as pxed
// does, says in its state directory what it is and may do, answers at its socket, and
// ends with the status that it finds in a file there.
func serviceOfATest(name string) {
	file := flag.String("config", "", "")
	user := flag.String("user", "", "")
	flag.String("rest", "", "")
	flag.Parse()
	if err := liveService(name, *file, *user); err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
}

// own is what a service of a test says of itself.
type own struct {
	Status string // /proc/self/status
	Net    string // its network namespace
	Wrote  []string
}

func liveService(name, file, user string) error {
	if user != "" {
		if err := drop.To(user, unix.CAP_NET_BIND_SERVICE, unix.CAP_NET_RAW); err != nil {
			return err
		}
	}
	c, err := config.Load(file)
	if err != nil {
		return err
	}
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return err
	}
	me := own{Status: string(status)}
	me.Net, _ = os.Readlink("/proc/self/ns/net")
	for _, dir := range []string{"/", "/usr/bin", filepath.Dir(file), c.RunDir, filepath.Join(c.RunDir, "gatewayd"), filepath.Join(c.RunDir, name),
		c.StateDir, filepath.Join(c.StateDir, name), filepath.Join(c.StateDir, "images")} {
		if os.WriteFile(filepath.Join(dir, "written"), nil, 0o600) == nil {
			me.Wrote = append(me.Wrote, dir)
		}
	}
	socket := filepath.Join(c.RunDir, map[string]string{"pxed": rpc.BootSocket, "attestd": rpc.AttestSocket}[name])
	os.Remove(socket)
	l, err := net.Listen("unix", socket)
	if err != nil {
		return err
	}
	b, err := json.Marshal(me)
	if err == nil {
		err = os.WriteFile(filepath.Join(c.StateDir, name, "own"), b, 0o600)
	}
	if err != nil {
		return err
	}
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			c.Close()
		}
	}()
	order := filepath.Join(c.StateDir, name, "exit")
	for ; ; time.Sleep(5 * time.Millisecond) {
		b, err := os.ReadFile(order)
		if n, aerr := strconv.Atoi(string(b)); err == nil && aerr == nil {
			l.Close()
			os.Remove(order)
			fmt.Println("last words")
			os.Exit(n)
		}
	}
}

// house is a Pi whose configuration names services as containers.
type house struct {
	*pi
	state  string
	images map[string]approval.Image
	dir    string // of the archives
}

func newHouse(t *testing.T) *house {
	t.Helper()
	p := newPi(t)
	// As on the Pi, what came with the system lies on another file system than the state.
	dir, err := os.MkdirTemp("/dev/shm", "portcullis-services-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	h := &house{pi: p, state: filepath.Join(p.daemon.Dir, "state"), images: map[string]approval.Image{}, dir: dir}
	text, err := os.ReadFile(p.config)
	if err != nil {
		t.Fatal(err)
	}
	text = []byte(strings.Replace(string(text), "services: []", "services: [attestd, pxed]", 1))
	p.config = filepath.Join(p.daemon.Dir, "etc", "portcullis.yaml")
	if err := errors.Join(os.Mkdir(filepath.Dir(p.config), 0o755), os.WriteFile(p.config, text, 0o644)); err != nil {
		t.Fatal(err)
	}
	// As systemd-tmpfiles makes them.
	for dir, uid := range map[string]int{p.run("gatewayd"): 973, p.run("pxed"): 971, p.run("attestd"): 972, h.dir: 0,
		filepath.Join(h.state, "pxed"): 971, filepath.Join(h.state, "attestd"): 972, filepath.Join(h.state, "images"): 0} {
		if err := errors.Join(os.MkdirAll(dir, 0o755), os.Chown(dir, uid, uid)); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range declared.Names {
		built, err := service.Pack(name, runtime.GOARCH, os.Args[0], h.dir)
		if err != nil {
			t.Fatal(err)
		}
		a, err := image.Open(t.Context(), built.File, image.Options{})
		if err != nil {
			t.Fatal(err)
		}
		h.images[name] = a.Image()
		a.Close()
	}
	p.more = []string{"-services", h.dir, "-keep"}
	return h
}

// approved is an approval of a service, with the profile that it is declared with.
func (h *house) approved(t *testing.T, name string, change func(*approval.Profile)) []byte {
	t.Helper()
	paths := declared.Standard
	paths.Config, paths.RunDir, paths.StateDir = h.config, h.run(""), h.state
	profile, err := declared.Profile(name, paths)
	if err != nil {
		t.Fatal(err)
	}
	if change != nil {
		change(&profile)
	}
	b, err := approval.Approval{Schema: approval.Schema, Name: name, Version: 1, Purpose: declared.Purpose(name), Image: h.images[name], Profile: profile,
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Hour)}.Sign(h.key)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func (h *house) services(t *testing.T) map[string]declared.Status {
	t.Helper()
	a, err := rpc.Client(h.run(rpc.VerifierSocket)).Get(rpc.BaseURL + declared.StatusPath)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Body.Close()
	var list []declared.Status
	if err := json.NewDecoder(a.Body).Decode(&list); err != nil || a.StatusCode != http.StatusOK || len(list) != 2 || list[0].Service != "pxed" {
		t.Fatalf("%s %v %v", a.Status, list, err)
	}
	return map[string]declared.Status{"pxed": list[0], "attestd": list[1]}
}

// becomes waits for a service to be in a state, for a reason.
func (h *house) becomes(t *testing.T, name, state, reason string, limit time.Duration) declared.Status {
	t.Helper()
	var s declared.Status
	until(t, name+" "+state+" "+reason, limit, func() bool {
		s = h.services(t)[name]
		return s.State == state && s.Reason == reason
	})
	return s
}

// tell has a service end with a status.
func (h *house) tell(t *testing.T, name string, exit int) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(h.state, name, "exit"), []byte(strconv.Itoa(exit)), 0o644); err != nil {
		t.Fatal(err)
	}
}

// processes are those of a service on this machine.
func (h *house) processes(t *testing.T, name string) (out []string) {
	t.Helper()
	found, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range found {
		if b, err := os.ReadFile(f); err == nil && strings.HasPrefix(string(b), "/usr/bin/"+name+"\x00--config\x00"+h.config+"\x00") {
			out = append(out, filepath.Base(filepath.Dir(f)))
		}
	}
	return out
}

// own reads what a service says of itself.
func (h *house) own(t *testing.T, name string) (o own) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(h.state, name, "own"))
	if err == nil {
		err = json.Unmarshal(b, &o)
	}
	if err != nil {
		t.Fatal(err)
	}
	return o
}

func (o own) field(name string) string {
	m := regexp.MustCompile(`(?m)^` + name + `:[ \t]*(.*)$`).FindStringSubmatch(o.Status)
	if m == nil {
		return ""
	}
	return strings.Join(strings.Fields(m[1]), " ")
}

// TestInvariant07_ServicesAsContainers: pxed and attestd run as containers when, and only
// when, they are approved: in their order, with what their units have, once.
func TestInvariant07_ServicesAsContainers(t *testing.T) {
	h := newHouse(t)
	// An approval that came with the system, of less than the service needs.
	less := h.approved(t, "pxed", func(p *approval.Profile) { p.Mounts = p.Mounts[1:] })
	if err := os.WriteFile(filepath.Join(h.dir, "pxed.approval"), less, 0o644); err != nil {
		t.Fatal(err)
	}
	// Its unit runs pxed.
	unit, err := net.Listen("unix", h.run(rpc.BootSocket))
	if err != nil {
		t.Fatal(err)
	}
	defer unit.Close()
	h.start(t)
	if err := h.daemon.Start(t.Context(), "--authorization-plugin", dockerd.Plugin); err != nil {
		t.Fatal(err)
	}
	h.becomes(t, "pxed", declared.StateElsewhere, services.ReasonElsewhere, time.Minute)
	unit.Close()
	h.becomes(t, "attestd", declared.StateRefused, approval.ReasonUnapproved, time.Minute)
	h.becomes(t, "pxed", declared.StateRefused, approval.ReasonProfile, time.Minute)
	if s := h.status(t); len(s.Containers) != 0 || len(h.processes(t, "pxed"))+len(h.processes(t, "attestd")) != 0 {
		t.Fatalf("what nobody approved is there: %v", s)
	}

	for version, name := range declared.Names {
		b := h.approved(t, name, nil)
		if name == "pxed" { // in place of the one above
			a, err := approval.Peek(b)
			if err != nil {
				t.Fatal(err)
			}
			a.Approval.Version = uint64(version) + 2
			b, err = a.Approval.Sign(h.key)
			if err != nil {
				t.Fatal(err)
			}
		}
		h.add(t, b, nil)
	}
	for _, name := range declared.Names {
		h.becomes(t, name, declared.StateRunning, "", time.Minute)
	}
	h.privileges(t)
	out, err := h.docker(t, nil, "run", "--rm", "--label", "portcullis.purpose=service/pxed", "portcullis/approved:pxed-2")
	if err == nil || !strings.Contains(out, approval.ReasonPurpose) {
		t.Errorf("a caller starts a service of the verifier: %s", out)
	}
	for _, words := range []string{"stop -t 0", "kill", "rm -f", "start"} {
		if out, err := h.docker(t, nil, append(strings.Fields(words), declared.Container("attestd"))...); err == nil || !strings.Contains(out, approval.ReasonPurpose) {
			t.Errorf("docker %s of a service: %v %s", words, err, out)
		}
	}
	h.adopted(t)
	h.inOrder(t)
	h.again(t)
	h.rests(t)

	revocation, err := approval.Revocation{Schema: approval.RevocationSchema, Image: h.images["pxed"].Config, Why: "test", Issued: time.Now()}.Sign(h.key)
	h.add(t, revocation, err)
	t.Logf("ended %s after the revocation", until(t, "the end of pxed", time.Second, func() bool { return len(h.processes(t, "pxed")) == 0 }))
	h.becomes(t, "pxed", declared.StateRefused, approval.ReasonRevoked, 10*time.Second)
	h.becomes(t, "attestd", declared.StateRunning, "", 0)
}

// privileges: those of the units, and nothing more.
func (h *house) privileges(t *testing.T) {
	t.Helper()
	for name, want := range map[string]struct {
		uid, caps string
		wrote     []string
	}{
		"pxed":    {"971 971 971 971", "0000000000002400", []string{h.run("pxed"), filepath.Join(h.state, "pxed")}},
		"attestd": {"972 972 972 972", "0000000000000000", []string{h.run("attestd"), filepath.Join(h.state, "attestd")}},
	} {
		o := h.own(t, name)
		for field, value := range map[string]string{"Uid": want.uid, "Gid": "970 970 970 970",
			"CapEff": want.caps, "CapPrm": want.caps, "CapAmb": want.caps, "NoNewPrivs": "1", "Seccomp": "2"} {
			if got := o.field(field); got != value {
				t.Errorf("%s: %s is %q, want %q", name, field, got, value)
			}
		}
		if groups := o.field("Groups"); groups != "" && groups != "970" {
			t.Errorf("%s is in the groups %s", name, groups)
		}
		if !slices.Equal(o.Wrote, want.wrote) {
			t.Errorf("%s can write to %v, want %v", name, o.Wrote, want.wrote)
		}
		p := h.processes(t, name)
		if len(p) != 1 {
			t.Fatalf("%s runs %d times", name, len(p))
		}
		// The engine of a test has a network of its own: that is its machine's.
		if net, err := os.Readlink("/proc/" + p[0] + "/ns/net"); err != nil || net != o.Net {
			t.Errorf("%s: %s %v", name, net, err)
		}
	}
	if h.own(t, "pxed").Net != h.own(t, "attestd").Net {
		t.Error("each has a network of its own")
	}
}

// adopted: verifierd is killed, the services go on, and the next one goes on with them.
func (h *house) adopted(t *testing.T) {
	t.Helper()
	before := [][]string{h.processes(t, "pxed"), h.processes(t, "attestd")}
	was := h.services(t)
	h.kill()
	time.Sleep(300 * time.Millisecond)
	h.start(t)
	for _, name := range declared.Names {
		if s := h.becomes(t, name, declared.StateRunning, "", time.Minute); s.Container != was[name].Container || s.Starts != 0 {
			t.Errorf("%s was not taken over: %+v, before %+v", name, s, was[name])
		}
	}
	if after := [][]string{h.processes(t, "pxed"), h.processes(t, "attestd")}; fmt.Sprint(before) != fmt.Sprint(after) {
		t.Errorf("processes %v, before %v", after, before)
	}
}

// inOrder: attestd is started when pxed answers.
func (h *house) inOrder(t *testing.T) {
	t.Helper()
	h.kill()
	// The engine is asked by its own command: no verifierd, no permission. So the containers
	// end by themselves.
	for _, name := range declared.Names {
		h.tell(t, name, 0)
		until(t, "the end of "+name, 10*time.Second, func() bool { return len(h.processes(t, name)) == 0 })
	}
	h.start(t)
	for _, name := range declared.Names {
		h.becomes(t, name, declared.StateRunning, "", time.Minute)
	}
	told := h.events.String()
	ready, created := strings.Index(told, `"event":"service.ready"`), strings.LastIndex(told, `"event":"container.started"`)
	if line := told[ready:]; !strings.Contains(line[:strings.Index(line, "\n")], `"service":"pxed"`) || created < ready {
		t.Errorf("attestd was started before pxed answered:\n%s", told)
	}
}

// again: what ends is started again, after a wait, as a new container.
func (h *house) again(t *testing.T) {
	t.Helper()
	was := h.services(t)["attestd"]
	h.tell(t, "attestd", 3)
	began := time.Now()
	h.wait(t, `"event":"service.ended"`)
	h.becomes(t, "attestd", declared.StateFailed, services.ReasonEnded, time.Second)
	if told := h.events.String(); !strings.Contains(told, `"exit":3`) || !strings.Contains(told, `"detail":"last words"`) {
		t.Errorf("its end was told as\n%s", told)
	}
	s := h.becomes(t, "attestd", declared.StateRunning, "", time.Minute)
	if took := time.Since(began); s.Container == was.Container || took < time.Second {
		t.Errorf("again after %s: %+v, before %+v", took, s, was)
	}
	if p := h.processes(t, "attestd"); len(p) != 1 {
		t.Errorf("attestd runs %d times", len(p))
	}
}

// rests: pxed says that the boot is done. Its container is gone, who watches boots is
// answered, and who asks about one has it started again.
func (h *house) rests(t *testing.T) {
	t.Helper()
	h.tell(t, "pxed", rpc.ExitAtRest)
	h.becomes(t, "pxed", declared.StateResting, "", time.Minute)
	if s := h.status(t); len(s.Containers) != 1 || s.Containers[0].Name != "portcullis-attestd" {
		t.Errorf("while pxed rests: %v", s.Containers)
	}
	boot := portcullisv1connect.NewBootClient(rpc.Client(h.run(rpc.BootSocket)), rpc.BaseURL)
	until(t, "an answer for pxed", 10*time.Second, func() bool {
		_, err := boot.GetSession(t.Context(), connect.NewRequest(&v1.GetSessionRequest{}))
		return connect.CodeOf(err) == connect.CodeFailedPrecondition
	})
	h.becomes(t, "pxed", declared.StateResting, "", 0)
	if _, err := boot.Claim(t.Context(), connect.NewRequest(&v1.ClaimRequest{})); connect.CodeOf(err) != connect.CodeUnavailable {
		t.Errorf("a claim: %v", err)
	}
	h.becomes(t, "pxed", declared.StateRunning, "", time.Minute)
	if p := h.processes(t, "pxed"); len(p) != 1 {
		t.Errorf("pxed runs %d times", len(p))
	}
}
