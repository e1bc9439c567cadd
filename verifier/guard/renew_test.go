package guard

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	ossignal "os/signal"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"portcullis/lab/dockerd"
)

// bring loads an image and returns its name.
func (r *rig) bring(t *testing.T, i dockerd.Image) string {
	t.Helper()
	out, err := r.docker(t, bytes.NewReader(i.Tar), "load")
	name, ok := strings.CutPrefix(strings.TrimSpace(out), "Loaded image: ")
	if err != nil || !ok {
		t.Fatal(err, out)
	}
	return name
}

// held makes the file of a layer one that cannot be opened until let is called, by a lease on
// it (fcntl(2)). opened says when somebody wants to.
func held(t *testing.T, path string) (opened <-chan os.Signal, let func()) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	asked := make(chan os.Signal, 1)
	ossignal.Notify(asked, unix.SIGIO)
	if _, err := unix.FcntlInt(f.Fd(), unix.F_SETLEASE, unix.F_WRLCK); err != nil {
		t.Fatalf("a lease on %s: %v", path, err)
	}
	let = sync.OnceFunc(func() { f.Close(); ossignal.Stop(asked) })
	t.Cleanup(let)
	return asked, let
}

// inStore makes and loads an image with a first layer of this test alone, makes a container of
// it, and returns where its program lies in the engine's store.
func (r *rig) inStore(t *testing.T) (i dockerd.Image, name, id, file string) {
	t.Helper()
	i, err := dockerd.Make("test/held:1", append(bytes.Clone(r.probe), t.Name()...), t.Name())
	if err != nil {
		t.Fatal(err)
	}
	r.approvals.approve(t, i, "task", plain)
	name = r.bring(t, i)
	id, err = r.docker(t, nil, "create", name)
	if err != nil {
		t.Fatal(err, id)
	}
	id = strings.TrimSpace(id)
	dirs, err := r.opt.Engine.Layers(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	return i, name, id, filepath.Join(dirs.Lower[len(dirs.Lower)-1], "probe")
}

// While the files of an image that is loaded again are compared, everything else goes on:
// containers are made, and what the engine holds is looked at, without ending the one by
// which the image is compared.
func TestComparingHoldsUpNothing(t *testing.T) {
	r := newRig(t)
	i, name, _, file := r.inStore(t)
	opened, let := held(t, file)
	loaded := make(chan string, 1)
	go func() {
		out, err := r.docker(t, bytes.NewReader(i.Tar), "load")
		loaded <- fmt.Sprint(out, err)
	}()
	<-opened
	done := make(chan string, 1)
	go func() {
		out, err := r.docker(t, nil, "create", name)
		if err == nil {
			err = r.containers(t.Context())
		}
		done <- fmt.Sprint(strings.TrimSpace(out), " ", err)
	}()
	select {
	case out := <-done:
		if !strings.HasSuffix(out, " <nil>") {
			t.Error(out)
		}
	case <-time.After(20 * time.Second): // a lease is broken after 45 s
		t.Error("a container cannot be made while an image is compared")
	}
	let()
	if out := <-loaded; !strings.HasPrefix(out, "Loaded image: "+name) {
		t.Errorf("loading: %s", out)
	}
	if out, err := r.docker(t, nil, "run", "--rm", name, "say", "on"); err != nil || out != "on\n" {
		t.Errorf("%v %s", err, out)
	}
}

// A container that is removed while the image is compared by it says nothing about the image.
func TestComparedByAContainerThatGoes(t *testing.T) {
	r := newRig(t)
	i, _, made, file := r.inStore(t)
	before, err := r.opt.Engine.Containers(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	opened, let := held(t, file)
	loaded := make(chan error, 1)
	go func() { _, err := r.docker(t, bytes.NewReader(i.Tar), "load"); loaded <- err }()
	<-opened
	list, err := r.opt.Engine.Containers(t.Context())
	if err != nil || len(list) != len(before)+1 {
		t.Fatalf("%d containers, %d before: %v", len(list), len(before), err)
	}
	for _, c := range list {
		if _, ours := r.state.container(c.ID); !ours {
			if err := r.opt.Engine.Remove(t.Context(), c.ID); err != nil {
				t.Error(err)
			}
		}
	}
	let()
	if err := <-loaded; err == nil {
		t.Error("loaded, and nothing was compared")
	}
	if _, err := r.opt.Engine.Resolve(t.Context(), made); err != nil || r.approvals.ended(made, ReasonImageStore) {
		t.Errorf("another container of the image was ended: %v", err)
	}
}

// A layer that was changed in the engine's store is refused until its image is loaded
// again; that unpacks it anew, and an image that shares the layer comes back from what
// is kept. What is sound is not taken out by a load.
func TestDamagedImageIsLoadedAgain(t *testing.T) {
	r := newRig(t)
	// A first layer of this test alone, shared by the two.
	program := append(bytes.Clone(r.probe), t.Name()...)
	var names []string
	var images []dockerd.Image
	for _, mark := range []string{"damaged", "beside"} {
		i, err := dockerd.Make("test/"+mark+":1", program, t.Name()+mark)
		if err != nil {
			t.Fatal(err)
		}
		r.approvals.approve(t, i, "task", plain)
		images, names = append(images, i), append(names, r.bring(t, i))
	}
	out, err := r.docker(t, nil, "run", "-d", names[1], "wait")
	if err != nil {
		t.Fatal(err, out)
	}
	beside := strings.TrimSpace(out)
	r.bring(t, images[0])
	if _, err := r.opt.Engine.Resolve(t.Context(), beside); err != nil {
		t.Fatalf("a sound image was loaded again, and a container is gone: %v", err)
	}
	id, err := r.docker(t, nil, "create", names[0])
	if err != nil {
		t.Fatal(err, id)
	}
	dirs, err := r.opt.Engine.Layers(t.Context(), strings.TrimSpace(id))
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(filepath.Join(dirs.Lower[len(dirs.Lower)-1], "probe"), os.O_WRONLY|os.O_APPEND, 0)
	if err == nil {
		_, err = f.WriteString("x")
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		t.Fatal(err)
	}
	if out, err := r.docker(t, nil, "run", "--rm", names[0], "say", "changed"); err == nil || !strings.Contains(out, ReasonImageStore) {
		t.Fatalf("a changed program: %v %s", err, out)
	}
	r.bring(t, images[0])
	if out, err := r.docker(t, nil, "run", "--rm", names[0], "say", "anew"); err != nil || out != "anew\n" {
		t.Errorf("loaded again: %v %s", err, out)
	}
	if _, err := r.opt.Engine.Resolve(t.Context(), beside); err == nil || !r.approvals.ended(beside, ReasonImageStore) {
		t.Errorf("a container of the damaged layer runs on, or its end is not in the log: %v", err)
	}
	waitFor(t, "the image beside", 30*time.Second, func() bool {
		_, err := r.opt.Engine.Image(t.Context(), names[1]) // its name comes last
		return err == nil
	})
	if out, err := r.docker(t, nil, "run", "--rm", names[1], "say", "beside"); err != nil || out != "beside\n" {
		t.Errorf("the image beside: %v %s", err, out)
	}
}
