package drop

import (
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// asUser makes the test's own program one that drops.
const asUser = "PORTCULLIS_TEST_DROP"

func TestMain(m *testing.M) {
	if user := os.Getenv(asUser); user != "" {
		if err := To(user, unix.CAP_NET_BIND_SERVICE, unix.CAP_NET_RAW); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		b, err := os.ReadFile("/proc/self/status")
		fmt.Println(string(b), err, os.Args[1:])
		return
	}
	os.Exit(m.Run())
}

func dropped(t *testing.T, user string) (string, error) {
	t.Helper()
	cmd := exec.Command(os.Args[0], "an", "argument")
	cmd.Env = append(os.Environ(), asUser+"="+user)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// The user, its group and no other, two capabilities, no new ones, and the same arguments.
func TestTo(t *testing.T) {
	if os.Getuid() != 0 {
		t.Fatal("needs root")
	}
	out, err := dropped(t, "971:970")
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	for field, want := range map[string]string{"Uid": "971\t971\t971\t971", "Gid": "970\t970\t970\t970", "Groups": " ", "NoNewPrivs": "1",
		"CapEff": "0000000000002400", "CapPrm": "0000000000002400", "CapInh": "0000000000002400", "CapAmb": "0000000000002400"} {
		got := regexp.MustCompile(`(?m)^` + field + `:\t(.*)$`).FindStringSubmatch(out)
		if got == nil || got[1] != want {
			t.Errorf("%s: %q, want %q", field, got, want)
		}
	}
	if !strings.Contains(out, "[an argument]") {
		t.Errorf("arguments: %s", out)
	}
}

func TestNobodyBecomesRoot(t *testing.T) {
	for _, user := range []string{"0:0", "971", "a:b", "971:", ":970", "-1:1", "971:970:1", "4294967296:1"} {
		if out, err := dropped(t, user); err == nil {
			t.Errorf("%s: %s", user, out)
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"971:970", "0:0", ":", "1:1:1", "+1:1", " 1:1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		uid, gid, err := parse(s)
		if err != nil {
			return
		}
		if u, g, err := parse(fmt.Sprintf("%d:%d", uid, gid)); err != nil || u != uid || g != gid || uid <= 0 || gid < 0 {
			t.Errorf("%q: %d %d, then %d %d %v", s, uid, gid, u, g, err)
		}
	})
}
