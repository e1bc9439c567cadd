package hpcinit

import (
	"encoding/base64"
	"net/netip"
	"os"
	"path/filepath"
	"syscall"

	"portcullis/agent/bootinfo"
	"portcullis/images/manifest"
	"portcullis/rootfs/boot"
)

// AgentPath is the agent in the verified root.
const AgentPath = "/usr/lib/portcullis/hpc-agent"

// writeNote leaves boot.json on the tmpfs that becomes /run of the new root.
func writeNote(l Lease, trust manifest.Trust, m *manifest.Verified, d devices) error {
	if err := os.MkdirAll(filepath.Dir(bootinfo.Path), 0o700); err != nil {
		return boot.Failf(ReasonBootNote, "%w", err)
	}
	err := bootinfo.Write(bootinfo.Path, bootinfo.Info{
		Session:        l.Session,
		Gateway:        netip.AddrPortFrom(l.Server, l.Agent).String(),
		GatewayKey:     base64.StdEncoding.EncodeToString(trust.GatewayKey),
		ManifestDigest: m.Fingerprint(),
		RootHash:       m.Verity.RootHash,
		RootDevice:     d.verity,
		LoopDevice:     d.loop,
	})
	if err != nil {
		return boot.Failf(ReasonBootNote, "%w", err)
	}
	return nil
}

// startAgent starts the agent inside root. It becomes a child of PID 1, which
// stays its parent through exec: the agent is older than systemd and no service of it,
// since its key lives in its memory and dies with it.
func startAgent(root string, console *os.File) (int, error) {
	null, err := os.Open(root + "/dev/null")
	if err != nil {
		return 0, boot.Failf(ReasonAgent, "%w", err)
	}
	defer null.Close()
	p, err := os.StartProcess(AgentPath, []string{AgentPath}, &os.ProcAttr{
		Dir:   "/",
		Env:   []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"},
		Files: []*os.File{null, console, console},
		// A session of its own: a hang-up of the console's terminal must not reach it.
		// Mounts of its own: what is mounted over /proc or /sys later is not what it reads.
		// They are in nobody's list: SwitchRoot removes the directory that its root is mounted
		// on, and the kernel detaches that mount from all other namespaces (rmdir(2) of a
		// mount point, Linux 3.18). So nobody who enters its namespace can mount there
		// either (lab/tamper, mount-before-the-agent-alone).
		Sys: &syscall.SysProcAttr{Chroot: root, Setsid: true, Unshareflags: syscall.CLONE_NEWNS},
	})
	if err != nil {
		return 0, boot.Failf(ReasonAgent, "%w", err)
	}
	pid := p.Pid
	return pid, p.Release()
}
