package hpcinit

import (
	"bufio"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"portcullis/rootfs/boot"
)

// The agent starts inside the new root: it sees itself under its own name.
func TestAgentStartsInTheNewRoot(t *testing.T) {
	root := t.TempDir()
	if _, err := startAgent(root, os.Stderr); boot.ReasonOf(err) != ReasonAgent {
		t.Errorf("a root without /dev/null: %v", err)
	}
	for _, d := range []string{"dev", "usr/lib/portcullis"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(root, "dev/null"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := startAgent(root, os.Stderr); boot.ReasonOf(err) != ReasonAgent {
		t.Errorf("a root without an agent: %v", err)
	}
	if err := os.WriteFile(filepath.Join(root, AgentPath), goBuild(t, "./testdata/facts"), 0o755); err != nil {
		t.Fatal(err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	pid, err := startAgent(root, w)
	w.Close()
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Wait4(pid, nil, 0, nil)
	defer syscall.Kill(pid, syscall.SIGKILL)
	// The second line ends the reading: the agent itself stays.
	want := []string{"fact: agent-exe=readlink /proc/self/exe: no such file or directory ", "fact: agent-session=true"}
	s := bufio.NewScanner(r)
	for _, w := range want {
		if !s.Scan() || s.Text() != w {
			t.Errorf("%q instead of %q", s.Text(), w)
		}
	}
}
