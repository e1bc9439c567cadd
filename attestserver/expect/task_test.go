package expect_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strconv"
	"testing"
	"time"

	"portcullis/agent/probe"
	"portcullis/attestserver/expect"
	"portcullis/attestserver/protocol"
)

// The approved image of these tests has one layer with one program.
var (
	taskProgram = append([]byte("\x7fELF task"), bytes.Repeat([]byte("code"), 2000)...)
	dockerCheck = []byte("\x7fELF which processor")
)

func packed(b []byte) []byte {
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	_, _ = w.Write(b)
	_ = w.Close()
	return out.Bytes()
}

// taskLayer is a layer as a tar stream, and the runtime's record of it.
func taskLayer(program []byte) (diff string, split []byte) {
	var stream bytes.Buffer
	w := tar.NewWriter(&stream)
	_ = w.WriteHeader(&tar.Header{Name: "usr/bin/task", Mode: 0o755, Size: int64(len(program))})
	head := stream.Len()
	_, _ = w.Write(program)
	_ = w.Close()
	sum := sha256.Sum256(stream.Bytes())
	var lines bytes.Buffer
	to := json.NewEncoder(&lines)
	_ = to.Encode(map[string]any{"type": 2, "payload": stream.Bytes()[:head]})
	_ = to.Encode(map[string]any{"type": 1, "name": "usr/bin/task", "size": len(program), "payload": []byte("crc")})
	_ = to.Encode(map[string]any{"type": 2, "payload": stream.Bytes()[head+len(program):]})
	return hex.EncodeToString(sum[:]), packed(lines.Bytes())
}

// store puts an image into the runtime's store and returns its name.
func (m *machine) store(program []byte) string {
	diff, split := taskLayer(program)
	config := taskConfig(diff)
	sum := sha256.Sum256(config)
	name := hex.EncodeToString(sum[:])
	docker := "proc/1/root/var/lib/docker"
	m.write(config, docker, "image/overlay2/imagedb/content/sha256", name)
	m.write([]byte(diff), docker, "image/overlay2/layerdb/sha256", diff, "cache-id")
	m.write(split, docker, "image/overlay2/layerdb/sha256", diff, "tar-split.json.gz")
	m.write(program, docker, "overlay2", diff, "diff/usr/bin/task")
	return name
}

func taskConfig(diff string) []byte {
	return fmt.Appendf(nil, `{"os":"linux","rootfs":{"type":"layers","diff_ids":["sha256:%s"]}}`, diff)
}

// runs lets a process live behind the walls of the container testID, which was made of image.
func (m *machine) runs(pid int, image string, content []byte) {
	m.container(image, "{}")
	m.write([]byte("0::/system.slice/x.service\n"), "proc/300/cgroup")
	m.link("pid:[4026531836]", "proc/300/ns/pid")
	m.mapped(pid, "task", "/usr/bin/task", content, probe.FileStat{Size: int64(len(content)), CTime: 77, Inode: 106, FSType: "overlay"}, "r-xp")
	m.behindWalls(pid)
}

// behindWalls gives a process the namespaces, control group and capabilities of the
// container testID.
func (m *machine) behindWalls(pid int) {
	dir := "proc/" + strconv.Itoa(pid)
	m.link("mnt:[1]", "proc/1/ns/mnt")
	m.link("mnt:[2]", dir, "ns/mnt")
	m.link("pid:[2]", dir, "ns/pid")
	m.write([]byte("0::/system.slice/docker-"+testID+".scope\n"), dir, "cgroup")
	m.write([]byte("Name:\ttask\nTracerPid:\t0\nCapPrm:\t00000000a80425fb\nCapEff:\t00000000a80425fb\n"), dir, "status")
}

// A program of an approved image is noted, and accuses nobody.
func TestTask_OfAnApprovedImageIsNoted(t *testing.T) {
	m := newMachine(t)
	m.enrol()
	m.runs(700, m.store(taskProgram), taskProgram)
	m.measured("/usr/bin/task", taskProgram)
	for _, op := range []string{protocol.OpProcs, protocol.OpPmem, protocol.OpIma, protocol.OpContainer} {
		found := m.judge(op)
		for _, f := range found {
			if f.Class != protocol.Info {
				t.Errorf("%s: %+v", op, f)
			}
		}
		switch op {
		case protocol.OpProcs:
			m.wants(found, protocol.Info, expect.ReasonTask, "container c0ffee00c0ff runs /usr/bin/task")
		case protocol.OpIma:
			m.wants(found, protocol.Info, expect.ReasonImaTask, "/usr/bin/task of the approved image")
		}
	}
}

// Whatever else runs in a container, or only looks as if it did, is unknown code.
func TestAttackCodeThatHidesInContainers(t *testing.T) {
	evil := append([]byte("\x7fELF evil"), taskProgram[8:]...)
	for _, a := range []struct {
		name, op, reason, detail string
		do                       func(m *machine, approved string)
	}{
		{"a program is copied into the container's own layer", protocol.OpProcs, expect.ReasonUnknownExecutable, "process 700 (task) in container c0ffee00c0ff",
			func(m *machine, approved string) { m.runs(700, approved, evil) }},
		{"its memory shows it too", protocol.OpPmem, expect.ReasonUnknownCode, "process 700 has mapped /usr/bin/task",
			func(m *machine, approved string) { m.runs(700, approved, evil) }},
		{"it ran in a container and is gone", protocol.OpIma, expect.ReasonImaUnknown, "/usr/bin/task",
			func(m *machine, approved string) { m.measured("/usr/bin/task", evil) }},
		{"namespaces are made by hand", protocol.OpProcs, expect.ReasonUnknownExecutable, "process 700 (task)", func(m *machine, approved string) {
			m.runs(700, approved, taskProgram)
			m.write([]byte("0::/system.slice/ssh.service\n"), "proc/700/cgroup")
		}},
		{"a control group has a container's name that the runtime does not know", protocol.OpProcs, expect.ReasonUnknownExecutable, "process 700 (task)", func(m *machine, approved string) {
			m.runs(700, approved, taskProgram)
			m.write([]byte("0::/system.slice/docker-"+"ff"+testID[2:]+".scope\n"), "proc/700/cgroup")
		}},
		{"a process of the machine is moved into a container's control group", protocol.OpProcs, expect.ReasonUnknownExecutable, "process 700 (task)", func(m *machine, approved string) {
			m.runs(700, approved, taskProgram)
			m.link("mnt:[1]", "proc/700/ns/mnt")
		}},
		{"a process enters a container with all of root's power", protocol.OpProcs, expect.ReasonUnknownExecutable, "process 700 (task)", func(m *machine, approved string) {
			m.runs(700, approved, taskProgram)
			m.write([]byte("Name:\ttask\nCapPrm:\t000001ffffffffff\nCapEff:\t000001ffffffffff\n"), "proc/700/status")
		}},
		{"a file of the image's layer is changed on the disk", protocol.OpProcs, expect.ReasonUnknownExecutable, "process 700 (task)", func(m *machine, approved string) {
			m.write(evil, "proc/1/root/var/lib/docker/overlay2", layerOf(taskProgram), "diff/usr/bin/task")
			m.runs(700, approved, evil)
		}},
		{"a file of the layer and the runtime's record of it are changed", protocol.OpProcs, expect.ReasonUnknownExecutable, "process 700 (task)", func(m *machine, approved string) {
			_, split := taskLayer(evil)
			m.write(split, "proc/1/root/var/lib/docker/image/overlay2/layerdb/sha256", layerOf(taskProgram), "tar-split.json.gz")
			m.write(evil, "proc/1/root/var/lib/docker/overlay2", layerOf(taskProgram), "diff/usr/bin/task")
			m.runs(700, approved, evil)
		}},
		{"the record of the container names an approved image, its program is of another", protocol.OpProcs, expect.ReasonUnknownExecutable, "process 700 (task)", func(m *machine, approved string) {
			m.store(evil)
			m.runs(700, approved, evil)
		}},
		{"an image runs that nobody approved", protocol.OpProcs, expect.ReasonUnknownExecutable, "process 700 (task)", func(m *machine, _ string) {
			m.runs(700, m.store(evil), evil)
		}},
		{"a container has its own file where the machine's image has one", protocol.OpProcs, expect.ReasonUnknownExecutable, "/usr/bin/dockerd", func(m *machine, approved string) {
			m.runs(700, approved, taskProgram)
			m.mapped(700, "dockerd", "/usr/bin/dockerd", evil, probe.FileStat{Size: 1_000_001, CTime: m.made.UnixNano(), Inode: m.number("/usr/bin/dockerd"), FSType: "overlay"}, "r-xp")
			m.behindWalls(700)
		}},
		{"a container makes code in its memory", protocol.OpProcs, expect.ReasonAnonymousCode, "process 700 (task)", func(m *machine, approved string) {
			m.runs(700, approved, taskProgram)
			m.append("7f0000000000-7f0000002000 rwxp 00000000 00:00 0 \n", "proc/700/maps")
		}},
		{"a memfd is called like runc's copy of itself", protocol.OpProcs, expect.ReasonDeletedExecutable, "memfd:runc_cloned", func(m *machine, _ string) {
			m.mapped(700, "runc:[2:INIT]", protocol.RuncClone+" (deleted)", evil, probe.FileStat{Size: int64(len(evil)), FSType: "tmpfs"}, "r-xp")
		}},
		{"a program takes the place of Docker's own checks", protocol.OpIma, expect.ReasonImaUnknown, "qemu-check123/check", func(m *machine, _ string) {
			m.measured("/var/lib/docker/tmp/qemu-check123/check", evil)
		}},
	} {
		t.Run(a.name, func(t *testing.T) {
			m := newMachine(t)
			a.do(m, m.store(taskProgram))
			m.wants(m.judge(a.op), protocol.Fatal, a.reason, a.detail)
		})
	}
}

func layerOf(program []byte) string {
	diff, _ := taskLayer(program)
	return diff
}

// What the runtime itself starts is no foreign code, as long as it is what it must be.
func TestTask_RuntimesOwnPrograms(t *testing.T) {
	m := newMachine(t)
	m.mapped(700, "runc:[2:INIT]", protocol.RuncClone+" (deleted)", m.files["/usr/sbin/runc"], probe.FileStat{Size: 20_000, FSType: "tmpfs"}, "r-xp")
	m.measured("memfd:runc_cloned:/proc/self/exe", m.files["/usr/sbin/runc"])
	m.mapped(701, "check", "/var/lib/docker/tmp/qemu-check77/check", dockerCheck, probe.FileStat{Size: int64(len(dockerCheck)), FSType: "tmpfs"}, "r-xp")
	m.measured("/var/lib/docker/tmp/qemu-check77/check", dockerCheck)
	// runc, shortly before it executes the task: the machine's libraries behind the walls.
	m.runs(702, m.store(taskProgram), taskProgram)
	m.mapped(702, "runc:[2:INIT]", "/usr/lib/libc.so.6", m.files["/usr/lib/libc.so.6"], probe.FileStat{Size: 70_000, FSType: "overlay"}, "r-xp")
	m.behindWalls(702)
	for _, op := range []string{protocol.OpProcs, protocol.OpPmem, protocol.OpIma} {
		for range 3 {
			if f := m.judge(op); len(f) > 0 {
				t.Errorf("%s: %+v", op, f)
			}
		}
	}
}

// An agent may take its time for a big image, and not for ever.
func TestTask_ReadingHasAnEnd(t *testing.T) {
	m := newMachine(t)
	for _, c := range []struct {
		reading time.Duration
		class   protocol.Class
		reason  string
	}{{time.Second, protocol.Info, expect.ReasonTaskUnread}, {11 * time.Minute, protocol.Fatal, expect.ReasonUnknownExecutable}} {
		in := m.input(protocol.OpProcs, false)
		var d protocol.ProcsData
		m.check(protocol.DecodeOp(in.Output.Data, protocol.MaxData, &d))
		d.ReadingMS = c.reading.Milliseconds()
		d.Files = append(d.Files, protocol.File{Path: "/usr/bin/task", FSType: "overlay", Container: testID, PIDs: []int{300}})
		var err error
		in.Output.Data, err = protocol.EncodeOp(d)
		m.check(err)
		in.Output.Digest = in.Key.Digest(protocol.OpProcs, in.Params, in.Output.Data)
		m.wants(m.twins[protocol.OpProcs].Judge(in), c.class, c.reason, "/usr/bin/task")
	}
}
