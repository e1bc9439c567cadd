// Package dockerd runs a real Docker engine for a test or the lab: this machine's
// dockerd, or one of Kinds, in mount, process and network namespaces of its own,
// with its own data root, without a bridge and without firewall rules. When it is
// closed the kernel ends every process and mount of the namespaces.
//
// It may be used by tests and by package lab/bypass. It needs root.
package dockerd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"time"

	"portcullis/verifier/gate"
)

// Plugin is the name under which the engine looks for the authorization plugin.
const Plugin = "portcullis"

// Engine is one running dockerd.
type Engine struct {
	// Dir holds everything of the engine; Socket and Plugins are below it.
	Dir string
	// Socket is where the engine listens, in a directory of mode 0700.
	Socket string
	// Plugins is what the engine sees as /run/docker/plugins.
	Plugins string
	// Store is the engine's data root.
	Store string
	// Kind is one of Kinds.
	Kind string
	// Gate is where the engine's runtime asks before a program runs: see Hold.
	Gate string

	kind     kind
	programs programs
	cmd      *exec.Cmd
	ended    chan struct{}
	cgroup   string
}

// Prepare makes the directories of an engine without starting it: the plugin has
// to listen in Plugins before Start. Close removes them. Which engine it is says
// KindEnv.
func Prepare() (*Engine, error) { return PrepareKind(context.Background(), os.Getenv(KindEnv)) }

// PrepareKind prepares one of Kinds; "" is this machine's. The first time that
// one is asked for which has to be built takes minutes.
func PrepareKind(ctx context.Context, name string) (*Engine, error) {
	if os.Getuid() != 0 {
		return nil, errors.New("dockerd: a real engine needs root")
	}
	k, err := kindOf(name)
	if err != nil {
		return nil, err
	}
	p, err := k.programs(ctx)
	if err != nil {
		return nil, fmt.Errorf("dockerd: %s: %w", k.name, err)
	}
	// Short: the path of a unix socket has 108 bytes.
	dir, err := os.MkdirTemp("/tmp", "pcdocker")
	if err != nil {
		return nil, fmt.Errorf("dockerd: %w", err)
	}
	e := &Engine{Dir: dir, Socket: filepath.Join(dir, "engine", "docker.sock"), Plugins: filepath.Join(dir, "plugins"), Store: filepath.Join(dir, "store"),
		Gate: filepath.Join(dir, "gate.sock"), Kind: k.name, kind: k, programs: p}
	for _, d := range []string{filepath.Dir(e.Socket), e.Plugins, e.Store} {
		if err := os.Mkdir(d, 0o700); err != nil {
			return nil, fmt.Errorf("dockerd: %w", err)
		}
	}
	for name, text := range map[string]string{"daemon.json": "{}", "subids": subordinate} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			return nil, fmt.Errorf("dockerd: %w", err)
		}
	}
	if k.remapped {
		// The root of a container is nobody here, and has to reach its files.
		if err := os.Chmod(dir, 0o711); err != nil {
			return nil, fmt.Errorf("dockerd: %w", err)
		}
	}
	e.cgroup = "/portcullis-" + filepath.Base(dir)
	return e, nil
}

// Hold makes runc-gate the runtime of the engine, which is not started yet: somebody has to
// answer at Gate.
func (e *Engine) Hold(ctx context.Context) error {
	program := filepath.Join(e.Dir, "runc-gate")
	if err := goBuild(ctx, runtime.GOARCH, program, "portcullis/cmd/runc-gate"); err != nil {
		return err
	}
	text, err := json.Marshal(map[string]any{"default-runtime": gate.Runtime, "runtimes": map[string]any{gate.Runtime: map[string]string{"path": program}}})
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(e.Dir, "daemon.json"), text, 0o644)
}

// script builds the engine's world: /run is empty but for the plugins, so that no
// file of the machine's own Docker is seen or changed. ROOT, where there is one, takes
// the place of all other files but DIR.
const script = `mount --make-rprivate /
if [ -n "$ROOT" ]; then
	mount --bind "$ROOT" "$ROOT"
	for d in proc sys dev; do mount --rbind /$d "$ROOT/$d"; done
	mount -t tmpfs -o mode=1777 none "$ROOT/tmp"
	mkdir "$ROOT$DIR"
	mount --bind "$DIR" "$ROOT$DIR"
	cd "$ROOT"
	pivot_root . mnt
	cd /
	umount -l /mnt
fi
mount -t proc proc /proc
mount -t tmpfs -o mode=755 none /run
mkdir -p /run/docker/plugins
mount --bind "$PLUGINS" /run/docker/plugins
if [ -n "$REMAP" ]; then
	mount --bind "$DIR/subids" /etc/subuid
	mount --bind "$DIR/subids" /etc/subgid
fi
exec dockerd "$@"`

// Start starts the engine and returns when its socket answers. flags are more
// flags of dockerd.
func (e *Engine) Start(ctx context.Context, flags ...string) error {
	log, err := os.Create(e.Log())
	if err != nil {
		return fmt.Errorf("dockerd: %w", err)
	}
	defer log.Close()
	args := append([]string{"-ec", script, "dockerd", "--config-file", filepath.Join(e.Dir, "daemon.json"),
		"--host", "unix://" + e.Socket, "--data-root", e.Store, "--exec-root", filepath.Join(e.Dir, "exec"),
		"--pidfile", filepath.Join(e.Dir, "pid"), "--storage-driver", e.kind.store, "--bridge", "none",
		"--iptables=false", "--ip6tables=false", "--ip-forward=false", "--ip-masq=false", "--log-driver", "local",
		"--cgroup-parent", e.cgroup, "--group", "root", "--log-level", "warn"}, flags...)
	remap := ""
	if e.kind.remapped {
		args, remap = append(args, "--userns-remap", remappedTo), "yes"
	}
	e.cmd = exec.Command("/bin/sh", args...)
	e.cmd.Env = append(os.Environ(), gate.SocketEnv+"="+e.Gate, "PLUGINS="+e.Plugins, "DIR="+e.Dir, "ROOT="+e.programs.root, "REMAP="+remap)
	if e.programs.bin != "" {
		e.cmd.Env = append(e.cmd.Env, "PATH="+e.programs.bin+":"+os.Getenv("PATH"))
	}
	e.cmd.Stdout, e.cmd.Stderr = log, log
	e.cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWNET}
	ended, err := begin(e.cmd)
	if err != nil {
		return fmt.Errorf("dockerd: %w", err)
	}
	e.ended = ended
	return e.answers(ctx, ended)
}

// begin starts a program that ends with this process. The kernel's signal for that comes when the
// thread ends that has started it (prctl(2), PR_SET_PDEATHSIG), and Go ends threads of its own
// accord: so that one waits for the program, and for nothing else.
func begin(cmd *exec.Cmd) (ended chan struct{}, err error) {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = new(syscall.SysProcAttr)
	}
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	ended = make(chan struct{})
	began := make(chan error)
	go func() {
		defer close(ended)
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		began <- err
		if err == nil {
			cmd.Wait()
		}
	}()
	return ended, <-began
}

// answers waits until the socket takes a connection.
func (e *Engine) answers(ctx context.Context, ended chan struct{}) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		if c, err := net.Dial("unix", e.Socket); err == nil {
			return c.Close()
		}
		select {
		case <-ended:
			return fmt.Errorf("dockerd: it ended at its start:\n%s", e.tail())
		case <-ctx.Done():
			return fmt.Errorf("dockerd: no answer: %w\n%s", ctx.Err(), e.tail())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// Containerd is the address of the engine's own containerd.
func (e *Engine) Containerd() string {
	return filepath.Join(e.Dir, "exec", "containerd", "containerd.sock")
}

// Ctr is containerd's own client, of the engine's kind where that has one.
func (e *Engine) Ctr() (string, error) {
	if e.programs.bin != "" {
		return filepath.Join(e.programs.bin, "ctr"), nil
	}
	p, err := exec.LookPath("ctr")
	if err != nil {
		return "", fmt.Errorf("dockerd: ctr (Debian package containerd) is missing: %w", err)
	}
	return p, nil
}

// Cgroup is the control group below which the engine's containers are.
func (e *Engine) Cgroup() string { return e.cgroup }

// Log is the file that the engine writes to.
func (e *Engine) Log() string { return filepath.Join(e.Dir, "log") }

func (e *Engine) tail() string {
	b, err := os.ReadFile(e.Log())
	if err != nil {
		return err.Error()
	}
	return string(b[max(0, len(b)-4096):])
}

// Close ends the engine and every process of its namespaces, and removes what it left.
func (e *Engine) Close() error {
	if e.cmd != nil {
		// The first process of the namespace: the kernel ends the others with it.
		e.cmd.Process.Kill()
		<-e.ended
		e.cmd = nil
	}
	return errors.Join(e.removeGroups(), os.RemoveAll(e.Dir))
}

// removeGroups removes the empty control groups that the engine made: in each
// hierarchy of version 1, or the one of version 2.
func (e *Engine) removeGroups() error {
	const root = "/sys/fs/cgroup"
	found, err := filepath.Glob(root + "/*" + e.cgroup)
	if err != nil {
		return err
	}
	for _, top := range append(found, root+e.cgroup) {
		below, err := filepath.Glob(top + "/*")
		if err != nil {
			return err
		}
		for _, d := range append(below, top) {
			if st, err := os.Lstat(d); err == nil && st.IsDir() {
				if err := os.Remove(d); err != nil && !errors.Is(err, os.ErrNotExist) {
					return fmt.Errorf("dockerd: control group: %w", err)
				}
			}
		}
	}
	return nil
}
