package fat

import (
	"bytes"
	"testing"
)

// What CopyFile streams is what ReadFile reads, also of a file larger than a piece.
func TestCopyFileStreamsTheFile(t *testing.T) {
	files := map[string][]byte{"a": noise(1, 3<<20+777), "dir/b": noise(2, 10), "empty": nil}
	fs := parse(t, volume(t, 16<<20, files))
	for name, want := range files {
		var got bytes.Buffer
		if err := fs.CopyFile(&got, name, 4<<20); err != nil || !bytes.Equal(got.Bytes(), want) {
			t.Errorf("%s: %d bytes, %v", name, got.Len(), err)
		}
	}
	if err := fs.CopyFile(&bytes.Buffer{}, "a", 3<<20); reason(err) != ReasonSize {
		t.Errorf("too large: %v", err)
	}
	if err := fs.CopyFile(&bytes.Buffer{}, "c", 3<<20); reason(err) != ReasonNotFound {
		t.Errorf("not there: %v", err)
	}
}
