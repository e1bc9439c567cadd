package medium

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// The network block device protocol, fixed newstyle, as far as QEMU's client asks
// for it (doc/proto.md in the nbd project).
const (
	magicServer = 0x4e42444d41474943 // "NBDMAGIC"
	magicOption = 0x49484156454f5054 // "IHAVEOPT"
	magicReply  = 0x0003e889045565a9
	magicAsk    = 0x25609513
	magicAnswer = 0x67446698

	flagFixedNewstyle, flagNoZeroes = 1 << 0, 1 << 1

	optExportName, optAbort, optInfo, optGo = 1, 2, 6, 7

	repAck, repInfo, repUnsupported, repInvalid = 1, 3, 1<<31 | 1, 1<<31 | 3

	infoExport, infoBlockSize = 0, 3

	// has flags, flush, FUA, trim, write zeroes
	exportFlags = 1<<0 | 1<<2 | 1<<3 | 1<<5 | 1<<6

	cmdRead, cmdWrite, cmdDisconnect, cmdFlush, cmdTrim, cmdZeroes = 0, 1, 2, 3, 4, 6

	cmdFUA = 1 << 0

	errIO, errInvalid = 5, 22
)

const (
	maxOption  = 4096     // bytes of one option
	maxOptions = 64       // options of one connection
	maxLength  = 32 << 20 // bytes of one request, but of a trim
)

// errProtocol is a client that does not speak as agreed.
var errProtocol = errors.New("medium: not the protocol")

// blocks is what a client reads and writes: a Disk.
type blocks interface {
	read(b []byte, at int64) error
	write(b []byte, n, at int64, through bool) error
	flush() error
	trim(at, n int64) error
	bytes() int64
}

func (d *Disk) bytes() int64 { return d.size }

// serve talks with one client until it leaves, in words or without.
func serve(c io.ReadWriter, d blocks) error {
	if err := agree(c, d.bytes()); err != nil {
		return err
	}
	var head [28]byte
	for {
		if _, err := io.ReadFull(c, head[:]); err != nil {
			return err
		}
		if binary.BigEndian.Uint32(head[:]) != magicAsk {
			return fmt.Errorf("%w: request %x", errProtocol, head[:4])
		}
		if binary.BigEndian.Uint16(head[6:]) == cmdDisconnect {
			return nil
		}
		out, err := one(c, d, head[:])
		if err != nil {
			return err
		}
		if _, err := c.Write(out); err != nil {
			return err
		}
	}
}

// one runs a request and returns the answer; an error ends the connection.
func one(c io.Reader, d blocks, head []byte) ([]byte, error) {
	flags, kind := binary.BigEndian.Uint16(head[4:]), binary.BigEndian.Uint16(head[6:])
	offset, length := binary.BigEndian.Uint64(head[16:]), int64(binary.BigEndian.Uint32(head[24:]))
	if length > maxLength && kind != cmdTrim {
		return nil, fmt.Errorf("%w: %d bytes at once", errProtocol, length)
	}
	var payload []byte
	if kind == cmdWrite {
		payload = make([]byte, length)
		if _, err := io.ReadFull(c, payload); err != nil {
			return nil, err
		}
	}
	answer := make([]byte, 16, 16+maxRead(kind, length))
	binary.BigEndian.PutUint32(answer, magicAnswer)
	copy(answer[8:], head[8:16])
	failed := func(code uint32) ([]byte, error) {
		binary.BigEndian.PutUint32(answer[4:], code)
		return answer[:16], nil
	}
	size := uint64(d.bytes())
	if kind != cmdFlush && (offset > size || uint64(length) > size-offset || offset%Sector != 0 || length%Sector != 0 || length == 0) {
		return failed(errInvalid)
	}
	at := int64(offset)
	var err error
	switch kind {
	case cmdRead:
		answer = answer[:16+length]
		err = d.read(answer[16:], at)
	case cmdWrite:
		err = d.write(payload, length, at, flags&cmdFUA != 0)
	case cmdZeroes:
		err = d.write(nil, length, at, flags&cmdFUA != 0)
	case cmdFlush:
		err = d.flush()
	case cmdTrim:
		err = d.trim(at, length)
	default:
		return failed(errInvalid)
	}
	if errors.Is(err, errOff) {
		return nil, err
	}
	if err != nil {
		return failed(errIO)
	}
	return answer, nil
}

func maxRead(kind uint16, length int64) int64 {
	if kind == cmdRead {
		return length
	}
	return 0
}

// agree is the handshake: there is one disk, whatever name is asked for.
func agree(c io.ReadWriter, size int64) error {
	hello := binary.BigEndian.AppendUint64(nil, magicServer)
	hello = binary.BigEndian.AppendUint64(hello, magicOption)
	hello = binary.BigEndian.AppendUint16(hello, flagFixedNewstyle|flagNoZeroes)
	if _, err := c.Write(hello); err != nil {
		return err
	}
	var flags [4]byte
	if _, err := io.ReadFull(c, flags[:]); err != nil {
		return err
	}
	for range maxOptions {
		option, data, err := readOption(c)
		if err != nil {
			return err
		}
		reply := func(kind uint32, body []byte) error {
			b := binary.BigEndian.AppendUint64(nil, magicReply)
			b = binary.BigEndian.AppendUint32(b, option)
			b = binary.BigEndian.AppendUint32(b, kind)
			b = binary.BigEndian.AppendUint32(b, uint32(len(body)))
			_, err := c.Write(append(b, body...))
			return err
		}
		switch option {
		case optExportName:
			b := binary.BigEndian.AppendUint64(nil, uint64(size))
			b = binary.BigEndian.AppendUint16(b, exportFlags)
			if binary.BigEndian.Uint32(flags[:])&flagNoZeroes == 0 {
				b = append(b, make([]byte, 124)...)
			}
			_, err := c.Write(b)
			return err
		case optInfo, optGo:
			if len(data) < 6 || uint64(binary.BigEndian.Uint32(data))+6 > uint64(len(data)) {
				err = reply(repInvalid, nil)
				break
			}
			b := binary.BigEndian.AppendUint16(nil, infoExport)
			b = binary.BigEndian.AppendUint64(b, uint64(size))
			b = binary.BigEndian.AppendUint16(b, exportFlags)
			if err = reply(repInfo, b); err != nil {
				return err
			}
			b = binary.BigEndian.AppendUint16(nil, infoBlockSize)
			for _, n := range []uint32{Sector, 4096, maxLength} {
				b = binary.BigEndian.AppendUint32(b, n)
			}
			if err = reply(repInfo, b); err != nil {
				return err
			}
			if err = reply(repAck, nil); err == nil && option == optGo {
				return nil
			}
		case optAbort:
			reply(repAck, nil)
			return io.EOF
		default:
			err = reply(repUnsupported, nil)
		}
		if err != nil {
			return err
		}
	}
	return fmt.Errorf("%w: more than %d options", errProtocol, maxOptions)
}

func readOption(c io.Reader) (option uint32, data []byte, err error) {
	var head [16]byte
	if _, err := io.ReadFull(c, head[:]); err != nil {
		return 0, nil, err
	}
	length := binary.BigEndian.Uint32(head[12:])
	if binary.BigEndian.Uint64(head[:]) != magicOption || length > maxOption {
		return 0, nil, fmt.Errorf("%w: option %x", errProtocol, head)
	}
	data = make([]byte, length)
	_, err = io.ReadFull(c, data)
	return binary.BigEndian.Uint32(head[8:]), data, err
}
