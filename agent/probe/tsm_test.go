package probe

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-configfs-tsm/configfs/configfsi"
	"golang.org/x/sys/unix"
)

// A machine that is not confidential is told from a report that failed: no directory of
// reports, or one that no driver stands behind.
func TestTsm_MachineThatIsNone(t *testing.T) {
	c := &configfs{mount: t.TempDir()}
	_, err := c.MkdirTemp(configfsi.TsmPrefix+"/report", "entry")
	if err == nil || !errors.Is(missing(c, errors.New("text only")), fs.ErrNotExist) {
		t.Errorf("no directory: %v, %v", err, missing(c, err))
	}
	c.refused = &fs.PathError{Op: "mkdir", Err: unix.ENXIO}
	if err := missing(c, errors.New("text only")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no driver: %v", err)
	}
	if err := os.MkdirAll(filepath.Join(c.mount, "tsm/report"), 0o700); err != nil {
		t.Fatal(err)
	}
	made, err := c.MkdirTemp(configfsi.TsmPrefix+"/report", "entry")
	if err != nil || filepath.Dir(made) != configfsi.TsmPrefix+"/report" {
		t.Fatalf("%q %v", made, err)
	}
	failed := errors.New("the report failed")
	if err := missing(c, failed); err != failed {
		t.Errorf("a report that failed: %v", err)
	}
}
