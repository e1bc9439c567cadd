package guard

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"portcullis/lab/dockerd"
)

// A container's user, root among them, is another one outside where the engine has
// user namespaces, and itself where it has none; the status says which of the two.
func TestUsersOfContainers(t *testing.T) {
	r := newRig(t)
	first := 0
	if strings.HasSuffix(r.daemon.Kind, dockerd.Remapped) {
		first = dockerd.FirstSubordinate
	}
	for _, user := range []int{0, 1000} {
		p := plain
		p.User = fmt.Sprintf("%d:%d", user, user)
		mark := fmt.Sprintf("user-%d-%s", user, filepath.Base(r.daemon.Dir))
		i, err := dockerd.Make("test/users:1", r.probe, mark)
		if err != nil {
			t.Fatal(err)
		}
		r.approvals.approve(t, i, "task", p)
		out, err := r.docker(t, strings.NewReader(string(i.Tar)), "load")
		name, ok := strings.CutPrefix(strings.TrimSpace(out), "Loaded image: ")
		if err != nil || !ok {
			t.Fatal(err, out)
		}
		if out, err = r.docker(t, nil, "run", "-d", name, "wait", mark); err != nil {
			t.Fatal(err, out)
		}
		var st unix.Stat_t
		waitFor(t, "the program of "+mark, 10*time.Second, func() bool {
			found, err := filepath.Glob("/proc/[0-9]*/cmdline")
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range found {
				if b, err := os.ReadFile(f); err == nil && string(b) == "/probe\x00wait\x00"+mark+"\x00" {
					return unix.Stat(filepath.Join(filepath.Dir(f), "status"), &st) == nil && unix.Stat(filepath.Dir(f), &st) == nil
				}
			}
			return false
		})
		if int(st.Uid) != first+user || int(st.Gid) != first+user {
			t.Errorf("user %d is %d:%d outside, not %d", user, st.Uid, st.Gid, first+user)
		}
		if out, err := r.docker(t, nil, "rm", "-f", strings.TrimSpace(out)); err != nil {
			t.Error(err, out)
		}
	}
	s, err := NewService(r.Guard).GetVerifierStatus(t.Context(), nil)
	if err != nil || s.Msg.Userns != (first != 0) || s.Msg.ContainerdStore != (r.daemon.Kind == dockerd.V29Containerd) {
		t.Errorf("%v %v", s, err)
	}
}
